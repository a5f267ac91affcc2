"""The costs of a step are measured, and the reasons are the right ones."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers import tensors
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_freeze import PlanError
from lightning_freeze.preview.step_cost import cost


def network() -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for channels in (3, 8, 8):
        parts += [nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(8 * 64, 2))


IMAGES = torch.randn(4, 3, 8, 8)
ACTIVATION = 4 * 8 * 64 * 4  # bytes of what a convolution returns


def test_flops_are_those_of_the_formulas() -> None:
    model = network()
    first, other = (2 * 4 * 64 * 8 * channels * 9 for channels in (3, 8))
    head = 2 * 4 * 512 * 2
    found = cost(model, lambda: model(IMAGES).sum())
    assert found.forward == first + 2 * other + head
    assert found.backward == first + 2 * 2 * other + 2 * head  # the input needs no gradient
    grouped = nn.Conv2d(8, 8, 3, groups=8)
    found = cost(grouped, lambda: grouped(torch.randn(1, 8, 4, 4)).sum())
    assert found.backward == found.forward


def test_a_frozen_prefix_costs_nothing_in_the_backward_pass() -> None:
    model = network()
    model[:9].requires_grad_(False).eval()
    found = cost(model, lambda: model(IMAGES).sum())
    assert found.saved == ACTIVATION  # the input of the head
    assert found.gradients == 4 * found.trainable == 4 * (512 * 2 + 2)
    assert not found.reasons


def test_a_norm_that_trains_is_named_and_what_it_keeps_alive() -> None:
    model = network()
    model.requires_grad_(False).eval()
    for part in model:
        if isinstance(part, nn.BatchNorm2d):
            part.requires_grad_(True)
    reasons = "\n".join(cost(model, lambda: model(IMAGES).sum()).reasons)
    assert "through frozen layers (3, from '3' on), because '1' before them trains" in reasons
    assert "'1' is a normalisation layer whose weight and bias train" in reasons
    assert "frozen layers behind something that trains (2) hold 0.02 MiB of their inputs" in reasons
    assert "(Conv2d) the most" in reasons


def test_nothing_of_the_model_is_changed() -> None:
    model = network()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, state = tensors(model), torch.get_rng_state()
    cost(model, lambda: (model(IMAGES) * torch.rand(())).sum())
    assert all(torch.equal(value, before[name]) for name, value in tensors(model).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model[0].weight.grad.eq(1).all()
    assert model[3].weight.grad is None


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 64), nn.Linear(64, 2)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Any:
        return self.head(checkpoint(self.body, self.stem(inputs), use_reentrant=self.reentrant))


def test_checkpointing_keeps_less_and_computes_again() -> None:
    model, inputs = Checkpointed(reentrant=False), torch.randn(16, 8)
    plain = nn.Sequential(model.stem, model.body, model.head)
    with_it, without = (cost(one, lambda one=one: one(inputs).sum()) for one in (model, plain))
    assert with_it.saved < without.saved
    assert with_it.backward == without.backward + 2 * 2 * 16 * 64 * 64
    assert with_it.gradients == without.gradients


def test_checkpointing_that_loses_gradients_is_said() -> None:
    model, inputs = Checkpointed(reentrant=True), torch.randn(16, 8)
    model.stem.requires_grad_(False)
    (said,) = [text for text in cost(model, lambda: model(inputs).sum()).reasons if "LOST" in text]
    assert "'body.0.weight' (4 parameters in all)" in said
    assert "use_reentrant=False" in said
    model.reentrant = False
    assert not [text for text in cost(model, lambda: model(inputs).sum()).reasons if "gets no" in text]


def test_a_model_without_anything_that_trains_is_refused() -> None:
    with pytest.raises(PlanError, match="nothing trains"):
        cost(nn.Linear(2, 2).requires_grad_(False), lambda: torch.zeros(()))


def test_a_parameter_that_the_step_leaves_out_is_named() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    (said,) = cost(model, lambda: model[0](torch.ones(1, 2)).sum()).reasons
    assert said == "'1.weight' (2 parameters in all) trains and gets no gradient in this step"


def test_the_step_runs_twice_in_grad_mode_and_then_once_for_each_time_that_is_taken() -> None:
    model, runs = nn.Linear(2, 2), []

    def step() -> Tensor:
        runs.append(torch.is_grad_enabled())
        return model(torch.ones(1, 2)).sum()

    with torch.no_grad():
        found = cost(model, step, repeats=3)
    assert runs == [True] * 5  # operations, then memory, then three times
    assert found.seconds > 0


def test_what_the_step_warns_of_is_passed_on() -> None:
    model = nn.Linear(2, 2)

    def step() -> Tensor:
        warnings.warn("of the user's", stacklevel=1)
        return model(torch.ones(1, 2)).sum()

    with pytest.warns(UserWarning, match="of the user's"):
        cost(model, step)
