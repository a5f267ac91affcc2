"""Ratios per group against plain loops over the same tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_freeze import OptimizerError
from lightning_freeze.optim.layer_ratios import check_moments, moment_ratios, trust_ratios


def stepped() -> AdamW:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, 2)) for _ in range(3)]
    optimizer = AdamW([{"params": parameters[:2]}, {"params": parameters[2:]}, {"params": []}], lr=0.1)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(3, 2)
        optimizer.step()
    return optimizer


def test_moment_ratios_are_the_mean_of_bias_corrected_moments() -> None:
    optimizer = stepped()
    expected = []
    for group in optimizer.param_groups[:2]:
        (beta1, beta2), ratios = group["betas"], []
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            step = float(state["step"])
            first, second = state["exp_avg"] / (1 - beta1**step), state["exp_avg_sq"] / (1 - beta2**step)
            ratios.append((first.abs() / (second.sqrt() + group["eps"])).flatten())
        expected.append(float(torch.cat(ratios).mean()))
    found = moment_ratios(optimizer)
    assert found is not None
    assert found.tolist() == [pytest.approx(value, rel=1e-6) for value in [*expected, 0.0]]


def test_trust_ratios_are_the_norm_of_weights_over_that_of_gradients() -> None:
    optimizer = stepped()
    expected = [
        float(torch.cat([p.detach().flatten() for p in ps]).norm() / torch.cat([p.grad.flatten() for p in ps]).norm())
        for ps in (group["params"] for group in optimizer.param_groups[:2])
    ]
    found = trust_ratios(optimizer)
    assert found is not None
    assert found.tolist() == [pytest.approx(value, rel=1e-6) for value in [*expected, 0.0]]


def test_there_is_nothing_to_compute_before_the_first_step() -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    assert moment_ratios(optimizer) is None
    assert trust_ratios(optimizer) is None


def test_an_optimizer_without_moments_is_refused_with_a_way_out() -> None:
    check_moments(stepped(), "A")
    with pytest.raises(OptimizerError, match=r"(?s)SGD has no exp_avg, exp_avg_sq, betas, eps.*kind='trust_ratio'"):
        check_moments(SGD([nn.Parameter(torch.zeros(2))], lr=0.1), "A")
