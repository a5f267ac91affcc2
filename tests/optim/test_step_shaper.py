"""Around one update: gradients dropped, rates scaled and put back, steps counted; also where the step raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from lightning_freeze.optim.slotted import SlottedOptimizer
from lightning_freeze.optim.step_shaper import StepShaper


class Calls:
    """A shape that records what it is asked; one factor and one dict of options per slot."""

    def __init__(self, optimizer: Any, factors: list[Any], options: list[dict[str, Any]] | None = None) -> None:
        self.made: list[str] = []
        self._factors, self._options = factors, options or [{} for _ in factors]
        self.slotted = SlottedOptimizer(optimizer, [], lambda p: "p", {}, {})
        self.shaper = StepShaper(self.slotted, self)

    def drop_idle(self, slotted: SlottedOptimizer) -> None:
        self.made.append("idle")

    def observe(self, slotted: SlottedOptimizer) -> None:
        self.made.append("observe")

    def factors(self, slotted: SlottedOptimizer) -> list[Any]:
        self.made.append(f"factors {slotted.steps}")
        return self._factors

    def options(self, slotted: SlottedOptimizer) -> list[dict[str, Any]]:
        return self._options

    def updated(self, slotted: SlottedOptimizer, rates: Any) -> None:
        self.made.append(f"updated at {[float(rate) for rate in rates]}")


def one_step(optimizer: Any) -> Any:
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()


@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
def test_an_update_uses_the_scaled_rate_and_nobody_sees_it_afterwards(rate: Any) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    calls = Calls(optimizer := SGD([parameter], lr=rate, foreach=False), [0.1])
    one_step(optimizer)
    assert torch.equal(parameter.detach(), torch.full((2,), -0.05))
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert [float(used) for used in calls.shaper.used] == [pytest.approx(0.05)]
    one_step(optimizer)
    update = ["idle", "observe", "factors 0", "updated at [0.05000000074505806]"]
    assert [call.replace("0.05]", "0.05000000074505806]") for call in calls.made] == [
        *update,
        *[call.replace("factors 0", "factors 1") for call in update],
    ]
    assert calls.slotted.steps == 2


def test_options_of_the_group_hold_for_one_update() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    Calls(optimizer := SGD([parameter], lr=1.0, momentum=0.9), [1.0], [{"momentum": 0.0}])
    for _ in range(2):
        one_step(optimizer)
    assert torch.equal(parameter.detach(), torch.full((2,), -2.0)), "without momentum"
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_a_closure_sees_the_plain_rate() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    calls = Calls(optimizer := SGD([parameter], lr=1.0), [0.5])
    seen = []

    def closure() -> float:
        seen.append(optimizer.param_groups[0]["lr"])
        parameter.grad = torch.ones(2)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert optimizer.step(closure=closure) == 3.0
    assert seen == [1.0, 1.0]
    assert torch.equal(parameter.detach(), torch.full((2,), -1.0))
    assert calls.slotted.steps == 2


def test_rates_are_back_after_a_step_that_raised() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    calls = Calls(optimizer := Adam([parameter], lr=1.0), [0.5])
    parameter.grad = torch.ones(2)
    optimizer.state[parameter] = {"step": torch.tensor(1.0)}
    with pytest.raises(KeyError, match="exp_avg"):
        optimizer.step()
    calls.shaper.close()
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert calls.slotted.steps == 0


def test_after_closing_the_optimizer_is_alone() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    calls = Calls(optimizer := SGD([parameter], lr=1.0), [0.5])
    calls.shaper.close()
    one_step(optimizer)
    assert calls.made == []
    assert torch.equal(parameter.detach(), torch.full((2,), -1.0))
