"""Around a step: several policies' factors multiply, and the rates of the next and the last step can be asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze import GradualUnfreeze
from lightning_freeze.engine.policy import Policy
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.schedule.moments import Progress


class Times(Policy):
    """Multiplies every rate."""

    shapes_steps = True  # type: ignore[assignment]

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def step_factors(self, optimizer: Any, slots: Sequence[Any], steps: int) -> list[float]:
        return [self.factor] * len(slots)


class Idle(Policy):
    idles = True  # type: ignore[assignment]

    def idle(self, optimizer: Any) -> Collection[str]:
        return ["0.bias", "not of this optimizer"]


def run_of(*policies: Any) -> tuple[Reconciler, nn.Sequential, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    run = Reconciler(model, policies, [optimizer])
    run.reconcile(Progress())
    return run, model, optimizer


def step(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()


def test_factors_of_several_policies_multiply() -> None:
    run, model, optimizer = run_of(Times(0.5), Times(0.25))
    assert run.updates.rates() == [[0.0625]]
    step(model, optimizer)
    assert run.updates.rates_used() == [[0.0625]]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_without_a_shaping_policy_the_rates_are_those_of_the_groups() -> None:
    run, model, optimizer = run_of(GradualUnfreeze(["1", "0"]))
    step(model, optimizer)
    assert run.updates.rates() == run.updates.rates_used() == [[0.5, 0.5]]


def test_rates_used_before_the_first_step_are_the_plain_ones() -> None:
    run, _, _ = run_of(Times(0.5))
    assert run.updates.rates_used() == [[0.5]]


@pytest.mark.parametrize("early", [True, False], ids=["before clipping", "right before the update"])
def test_idle_parameters_get_no_update(early: bool) -> None:
    run, model, optimizer = run_of(Idle())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.ones(3, 2)).sum().backward()
    if early:
        run.updates.before(optimizer)
        assert model[0].bias.grad is None
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"0.weight", "1.weight", "1.bias"}


def test_after_closing_nothing_is_scaled() -> None:
    run, model, optimizer = run_of(Times(0.0))
    run.close()
    before = model[1].bias.detach().clone()
    step(model, optimizer)
    assert not torch.equal(model[1].bias, before)
