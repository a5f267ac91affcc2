"""Which modules are frozen, with Dropout between them."""

from __future__ import annotations

import torch
from helpers import fit
from torch import Tensor, nn
from watched import Chain, Watched

from lightning_freeze import FreezeLayers


def test_a_module_that_trains_in_part_stays_in_train_mode() -> None:
    module = Watched()
    fit(module, [FreezeLayers(["stem.1.weight", "mid.0", "mid.1.bias"])])
    assert module.modes() == [{"mid.0"}] * 3


class Positioned(nn.Module):
    """A transformer's shape: a parameter of its own between two layers, and Dropout after it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.inner = nn.Module()
        self.inner.position = nn.Parameter(torch.zeros(4))
        self.inner.dropout = nn.Dropout(0.5)
        self.inner.layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner.layers(self.inner.dropout(self.embed(inputs) + self.inner.position))


def test_dropout_between_frozen_modules_is_off_and_at_the_border_it_is_on() -> None:
    module = Chain(nn.Dropout(), nn.Linear(4, 4), nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Linear(4, 4), nn.Dropout())
    fit(module, [FreezeLayers("body")], epochs=1)
    assert module.modes() == [
        {f"body.{place}" for place in ("0", "1", "2.0", "2.1", "3", "4")}
    ]  # all under a frozen module
    module = Chain(nn.Dropout(), nn.Linear(4, 4), nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Linear(4, 4), nn.Dropout())
    fit(module, [FreezeLayers(["body.1", "body.3"]), FreezeLayers("head.bias")], epochs=1)
    assert module.modes() == [{f"body.{place}" for place in ("0", "1", "2.0", "2.1", "3", "4")}]
    module = Chain(nn.Dropout(), nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4))
    fit(module, [FreezeLayers(["body.1", "body.3"])], epochs=1)
    assert module.modes() == [{"body.1", "body.2", "body.3"}]


def test_a_parameter_of_a_parent_does_not_separate_frozen_modules() -> None:
    module = Chain(Positioned())
    fit(module, [FreezeLayers(["*", "!body.0.inner.layers.2", "!head"])], epochs=1)
    inner = "body.0.inner."
    assert module.modes() == [{"body.0.embed", f"{inner}dropout", f"{inner}layers.0"}]
