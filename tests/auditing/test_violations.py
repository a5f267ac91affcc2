"""What is wrong with a model and its optimizers, one planted fault each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze import audit, fingerprint, freeze
from lightning_freeze.auditing.violations import (
    Violation,
    flag_violations,
    group_violations,
    message,
    mode_violations,
    placed,
    replaced,
)
from lightning_freeze.model.index import ModelIndex


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))


def test_nothing_wrong_is_an_empty_list(model: nn.Sequential) -> None:
    before = fingerprint(model, freeze(model, ["0", "1"]))
    optimizer = torch.optim.SGD(model[2].parameters(), 0.1)
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    assert audit(model, optimizer, before) == []
    assert audit(model, [optimizer], before) == []


def statistics(model: nn.Sequential) -> None:
    model[1].train()
    model[1](torch.ones(4, 2) * 7)


FAULTS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda model: model[0].weight.data.add_(1), r"'0\.weight' is frozen and has moved.*written by hand"),
    (statistics, r"'1\.running_mean' is frozen and has moved.*'1', a BatchNorm1d, is in train mode"),
    (lambda model: model[1].register_buffer("running_var", None), r"'1\.running_var' is gone"),
]


@pytest.mark.parametrize(("fault", "text"), FAULTS)
def test_what_moved_is_named_with_its_likely_cause(model: nn.Sequential, fault: Any, text: str) -> None:
    freeze(model, ["0", "1"], eval_mode=False)
    before = fingerprint(model, ["0", "1"])
    fault(model)
    assert re.search(f"(?s){text}", "\n".join(map(str, audit(model, [], before))))


def test_the_alias_that_trains_in_the_same_memory_is_named(model: nn.Sequential) -> None:
    model.append(nn.Linear(2, 2))
    model[3].weight = nn.Parameter(model[0].weight.data)  # another parameter, the same memory
    before = fingerprint(model, freeze(model, ["0.weight"]))
    with torch.no_grad():
        model[3].weight += 1
    (found,) = audit(model, [], before)
    assert "it shares its memory with '3.weight', a tied alias that trains" in str(found)


def test_groups_hold_each_trainable_parameter_once_and_nothing_frozen(model: nn.Sequential) -> None:
    index = ModelIndex(model)
    trainable = ["2.weight", "2.bias"]
    twice = torch.optim.SGD([model[2].weight], 0.1)
    other = torch.optim.SGD([{"params": [model[2].weight]}, {"params": [model[0].bias], "name": "low"}], 0.1)
    found = {one.name: one.found for one in group_violations(index, trainable, [twice, other])}
    assert found == {
        "0.bias": "is frozen and in group 'low' of optimizer 1 (SGD)",
        "2.weight": "is in 2 groups: group '0' of optimizer 0 (SGD), group '0' of optimizer 1 (SGD)",
        "2.bias": "is trainable and in no group of any optimizer",
    }


def test_flags_modes_and_replaced_parameters(model: nn.Sequential) -> None:
    index = ModelIndex(model)
    everything = list(index.parameters)
    model[0].weight.requires_grad_(False)
    assert [one.found for one in flag_violations(index, everything)] == ["is trainable and requires none"]
    norm = next(place for place, span in index.places if span.name == "1")
    assert [one.name for one in mode_violations(index, [norm])] == ["1"]
    model[1].eval()
    assert mode_violations(index, [norm]) == []
    assert replaced(index) == []
    model[2].weight = nn.Parameter(torch.zeros(1, 2))
    assert [one.name for one in replaced(index)] == ["2.weight"]


def test_a_violation_gets_the_stage_around_it_and_when_it_was_right(model: nn.Sequential) -> None:
    index, labels = ModelIndex(model), {"1.weight": "low", "1.bias": "low"}
    found = placed([Violation("1.running_mean", "x", "y"), Violation("2.bias", "x", "y")], index, labels, {}, "epoch 3")
    assert [(one.stage, one.last_right) for one in found] == [("low", "epoch 3"), ("", "epoch 3")]
    assert str(found[0]) == "'1.running_mean' (stage 'low') x; last right: epoch 3.\n    Likely cause: y"


def test_many_violations_are_cut_to_a_number() -> None:
    text = message([Violation(str(k), "x", "y") for k in range(5)], "the end", limit=2)
    assert text.startswith("audit at the end: 5 violations.\n  1. '0' x")
    assert text.endswith("... and 3 more")
