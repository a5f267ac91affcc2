"""Freezing in a plain loop; more of `freeze` and eval mode in tests/engine/test_modes.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from lightning_freeze import PatternError, PlanError, freeze, param_groups, select, unfreeze


def test_a_frozen_parameter_stays_in_an_optimizer_that_still_holds_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = model[0].weight.detach().clone()
    assert freeze(model, "0") == ["0.weight", "0.bias"]
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert unfreeze(model, "0.weight") == ["0.weight"]
    assert not model[0].bias.requires_grad


def test_a_wrong_pattern_freezes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(PatternError, match=r"^freeze: pattern '3'"):
        freeze(model, ["0", "3"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_groups_hold_each_trainable_parameter_once_with_its_rate_and_decay() -> None:
    model = resnet18()
    freeze(model, "conv1")
    groups = param_groups(model, lr=0.1, decay=0.5, weight_decay=0.01)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids)) == sum(parameter.requires_grad for parameter in model.parameters())
    assert groups[0]["name"] == "fc"
    assert groups[0]["lr"] == 0.1
    bare = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    named = dict(model.named_parameters())
    assert bare == {id(named[name]) for name in named if name != "conv1.weight" and named[name].dim() == 1}


def test_patterns_can_say_what_has_no_weight_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    groups = param_groups(model, lr=0.1, weight_decay=0.5, no_decay=["0"])
    assert {group["name"]: group["weight_decay"] for group in groups} == {"rest": 0.5, "rest/no_decay": 0.0}
    assert [len(group["params"]) for group in groups if group["weight_decay"] == 0] == [len(select(model, "0"))]


@pytest.mark.parametrize("options", [{"lr": 0}, {"lr": -1}, {"lr": 0.1, "weight_decay": -0.1}, {"lr": 0.1, "decay": 2}])
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="param_groups: "):
        param_groups(nn.Linear(2, 2), **options)
