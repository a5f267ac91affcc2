"""A seal breaks when anything that a module's output hangs on is another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze.cache.seal import Seal


class Scaled(nn.Module):
    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.factors, self.options, self.offset = [1.0, 2.0], {"deep": {"er": 1}}, torch.zeros(4)


def edit(module: Any, how: str) -> None:
    with torch.no_grad():
        exec(how, {"module": module, "torch": torch, "nn": nn})


EDITS = [
    "module.inner.weight.mul_(2)",
    "module.inner.weight.data = module.inner.weight.data * 2",
    "module.norm.running_mean.add_(1)",
    "module.norm.eps = 0.1",
    "module.norm.train(not module.norm.training)",
    "module.factors[0] = 3.0",
    "module.options['deep']['er'] = 2",
    "module.offset = module.offset + 1",
    "module.offset.add_(1)",
    "module.inner = nn.Linear(4, 4)",
    "module.inner.register_forward_hook(lambda *_: None)",
    "module.inner.forward = torch.tanh",
    "module.norm.__class__ = nn.BatchNorm2d",
    "type(module).scale = type(module).scale + 1",
    "module.inner._parameters['weight'] = nn.Parameter(module.inner.weight.detach().clone())",
]


@pytest.mark.parametrize("how", EDITS)
def test_an_edit_breaks_the_seal(how: str) -> None:
    module = Scaled()
    seal = Seal(module)
    assert seal.holds()
    assert seal.same_numbers()
    edit(module, how)
    assert not seal.holds()


def test_a_write_through_data_is_found_between_epochs() -> None:
    module = Scaled()
    seal = Seal(module)
    module.inner.weight.data.mul_(2)
    assert seal.holds()
    assert not seal.same_numbers()


def test_a_buffer_that_was_written_with_its_values_holds() -> None:
    module = Scaled()
    seal = Seal(module)
    module.norm.running_mean.copy_(module.norm.running_mean.clone())
    assert seal.holds()


@pytest.mark.parametrize("look", [lambda module: module(torch.ones(2, 4)), lambda module: module.state_dict()])
def test_use_does_not_break_it(look: Callable[[nn.Module], Any]) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    seal = Seal(module)
    look(module)
    assert seal.holds()
