"""A module that does more than to return something is not skipped."""

from __future__ import annotations

import gc
import random
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.cache.observation import observe

COUNT: dict[str, int] = {}


class Doing(nn.Module):
    total = 0

    def __init__(self, what: str) -> None:
        super().__init__()
        self.inner, self.what, self.calls = nn.Linear(4, 4), what, 0
        self.kept: list[Any] = []
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Any:
        out = self.inner(inputs)
        return DOES[self.what](self, inputs, out)


def calls(self: Any, inputs: Tensor, out: Tensor) -> Tensor:
    self.calls += 1
    return out


def keeps(self: Any, inputs: Tensor, out: Tensor) -> Tensor:
    self.kept.append(out)
    return out


def counts_outside(self: Any, inputs: Tensor, out: Tensor) -> Tensor:
    COUNT["calls"] = COUNT.get("calls", 0) + 1
    return out


def counts_in_class(self: Any, inputs: Tensor, out: Tensor) -> Tensor:
    type(self).total += 1
    return out


def buffers(self: Any, inputs: Tensor, out: Tensor) -> Tensor:
    self.seen += 1
    return out


def prints(self: Any, inputs: Tensor, out: Tensor) -> Tensor:
    print("called")
    return out


DOES: dict[str, Any] = {
    "nothing": lambda self, inputs, out: out,
    "calls": calls,
    "keeps": keeps,
    "counts outside": counts_outside,
    "counts in class": counts_in_class,
    "buffers": buffers,
    "prints": prints,
    "reads": lambda self, inputs, out: out if out.sum() > 0 else -out,
    "draws": lambda self, inputs, out: out * torch.rand(()),
    "draws in Python": lambda self, inputs, out: out * random.random(),
    "writes": lambda self, inputs, out: out + inputs.add_(1),
    "gives back": lambda self, inputs, out: inputs,
    "gives a view": lambda self, inputs, out: inputs.view(-1),
    "gives its weight": lambda self, inputs, out: (out, self.inner.weight),
}


@pytest.mark.parametrize("what", DOES)
def test_what_a_call_does_is_seen(what: str) -> None:
    module = Doing(what).requires_grad_(False)
    given = torch.randn(3, 4)
    random.seed(0)
    torch.manual_seed(0)
    result, seen = observe(module, [given], lambda tensors: module(*tensors))
    assert bool(seen.flaw) == (what != "nothing")
    leaves = result if isinstance(result, tuple) else (result,)
    assert all(type(one) in (Tensor, nn.Parameter) for one in (*leaves, *module.kept))
    if what == "nothing":
        assert torch.equal(result, module.inner(given))


def test_whether_gradients_are_on_is_noted_when_it_is_asked() -> None:
    module = Doing("nothing").requires_grad_(False)
    DOES["asks"] = lambda self, inputs, out: out if torch.is_grad_enabled() else -out
    assert not observe(module, [torch.ones(1, 4)], lambda tensors: module(*tensors))[1].looks
    module.what = "asks"
    assert observe(module, [torch.ones(1, 4)], lambda tensors: module(*tensors))[1].looks
    del DOES["asks"]


class Litter:
    """Garbage of somebody else, that does something when it is collected."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        COUNT["collected"] = COUNT.get("collected", 0) + 1
        time.perf_counter()


def test_what_the_garbage_collector_runs_meanwhile_is_not_the_modules_doing() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval().requires_grad_(False)

    def call(tensors: list[Tensor]) -> Tensor:
        for _ in range(5):
            Litter()
        return module(*tensors)

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        _, seen = observe(module, [torch.ones(2, 4)], call)
    finally:
        gc.set_threshold(*before)
    assert not seen.flaw
    assert gc.isenabled()
