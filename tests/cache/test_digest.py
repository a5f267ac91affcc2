"""Digests are equal for what gives the same rows, and differ for anything else."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.cache.digest import Unstable, digest


class Scaled(nn.Module):
    table = (1, 2)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.options: dict[str, Any] = {"deep": {"er": [1, {"est": 2.0}]}}
        self.activate: Any = torch.relu
        self.offset = torch.zeros(2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.activate(self.norm(self.inner(inputs)))


def twice(one: Tensor) -> Tensor:
    return one * 2


def factor(by: float) -> Callable[[Tensor], Tensor]:
    return lambda one: one * by


EDITS: list[Callable[[Any], Any]] = [
    lambda module: module.inner.weight.data.view(-1)[7].add_(1e-7),
    lambda module: module.norm.running_mean.add_(1),
    lambda module: module.norm.eval(),
    lambda module: setattr(module.norm, "eps", 0.1),
    lambda module: module.options["deep"]["er"][1].update(est=3.0),
    lambda module: setattr(module, "activate", torch.tanh),
    lambda module: setattr(module, "activate", twice),
    lambda module: setattr(module, "activate", factor(2.0)),
    lambda module: setattr(module, "activate", functools.partial(torch.clamp, min=0)),
    lambda module: setattr(module, "inner", nn.Linear(4, 4, dtype=torch.float64)),
    lambda module: setattr(module, "more", nn.Identity()),
    lambda module: setattr(module, "offset", torch.ones(2)),
    lambda module: setattr(module, "forward", lambda inputs: inputs),
    lambda module: setattr(module.norm, "__class__", nn.SyncBatchNorm),
]


@pytest.mark.parametrize("place", range(len(EDITS)))
def test_an_edit_gives_another_digest(place: int) -> None:
    module = Scaled()
    before = digest(module)
    assert digest(copy.deepcopy(module)) == digest(Scaled()) == before
    with torch.no_grad():
        EDITS[place](module)
    assert digest(module) != before


def test_code_and_what_it_closes_over_count() -> None:
    assert digest(factor(2.0)) == digest(factor(2.0)) != digest(factor(3.0))
    first = type("Layer", (nn.Module,), {"forward": lambda self, inputs: inputs + 1})
    other = type("Layer", (nn.Module,), {"forward": lambda self, inputs: inputs + 2})
    assert digest(first) != digest(other)
    assert digest(Scaled) == digest(Scaled)
    before = digest(Scaled)
    Scaled.table = (1, 3)
    try:
        assert digest(Scaled) != before
    finally:
        Scaled.table = (1, 2)


def test_a_setting_of_torch_counts() -> None:
    before, threads = digest(1), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert digest(1) != before
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("thing", [torch.Generator(), iter([1]), object()], ids=["generator", "iterator", "object"])
def test_what_cannot_be_compared_is_refused(thing: object) -> None:
    with pytest.raises(Unstable, match="cannot be compared with one of another process"):
        digest([thing])


def test_order_of_a_set_and_objects_that_hold_themselves_do_not_matter() -> None:
    assert digest({"a", "b", "c"}) == digest({"c", "b", "a"})
    circle: list[Any] = [1]
    circle.append(circle)
    assert digest(circle)
