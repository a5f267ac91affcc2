"""Which options a group has, which values fit it, and what of them is a change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from lightning_freeze import PlanError
from lightning_freeze.optim.group_options import RATES, changed, check_option, check_options, options_text


def adamw(**options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=0.01, weight_decay=0.3, **options)


@pytest.mark.parametrize("option", RATES)
def test_rates_are_no_options(option: str) -> None:
    with pytest.raises(PlanError, match=rf"owner: '{option}' is a learning rate.*\n  Use LayerwiseLR"):
        check_option(option, "owner")


@pytest.mark.parametrize("option", ["params", "param_names", "name", "", 3])
def test_what_a_group_is_made_of_is_no_option(option: Any) -> None:
    with pytest.raises(PlanError, match="is not an option of an optimizer, such as weight_decay"):
        check_option(option, "owner")
    check_option("weight_decay", "owner")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.5}, r"AdamW has no option 'momentum'.\n  It has: betas, eps"),
        ({"weight_decy": 0.5}, r"no option 'weight_decy'.\n  It has: weight_decay$"),
        ({"weight_decay": -1.0}, r"AdamW refuses {'weight_decay': -1.0}: Invalid weight_decay"),
        ({"weight_decay": "much"}, r"weight_decay='much' does not fit AdamW, which has 0.3 now"),
        ({"weight_decay": True}, r"weight_decay=True does not fit AdamW"),
        ({"amsgrad": 1}, r"amsgrad=1 does not fit AdamW, which has False now"),
        ({"betas": [0.9]}, r"betas=\[0.9\] does not fit AdamW"),
        ({"betas": ["0.9", 0.9]}, r"does not fit AdamW"),
        ({"betas": 0.9}, r"betas=0.9 does not fit AdamW"),
    ],
)
def test_what_the_optimizer_does_not_take_is_refused(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_options(adamw(), 0, options, "owner")


def test_what_it_takes_is_accepted_and_changes_nothing() -> None:
    optimizer = adamw()
    before = dict(optimizer.param_groups[0])
    check_options(optimizer, 0, {"betas": [0.5, 0.9], "eps": 1, "foreach": True, "amsgrad": True}, "owner")
    assert optimizer.param_groups[0] == before
    assert not optimizer.state


def test_the_group_that_is_meant_counts() -> None:
    optimizer = adamw()
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    del optimizer.param_groups[1]["eps"]
    check_options(optimizer, 0, {"eps": 1e-4}, "owner")
    with pytest.raises(PlanError, match="no option 'eps'"):
        check_options(optimizer, 1, {"eps": 1e-4}, "owner")


@pytest.mark.parametrize("option", [{"betas": [0.5, 0.9]}, {"eps": 1e-4}])
def test_what_a_scheduler_sets_in_each_step_is_refused(option: Any) -> None:
    optimizer = adamw()
    OneCycleLR(optimizer, 0.02, total_steps=20)
    if "eps" in option:
        check_options(optimizer, 0, option, "owner")
        return
    with pytest.raises(PlanError, match=r"sets 'betas' in each step.*\n.*cycle_momentum=False"):
        check_options(optimizer, 0, option, "owner")


def test_only_what_differs_from_the_group_is_a_change() -> None:
    group = {"betas": (0.9, 0.99), "weight_decay": 0.0, "foreach": None}
    assert changed(group, {"weight_decay": 0, "betas": [0.9, 0.99], "foreach": None}) == {}
    assert changed(group, {"foreach": True, "betas": [0.5, 0.99]}) == {"betas": (0.5, 0.99), "foreach": True}
    assert list(changed(group, {"weight_decay": 1.0, "betas": (0.5, 0.9)})) == ["betas", "weight_decay"]
    assert changed(group, {"other": 1}) == {"other": 1}


def test_options_as_text() -> None:
    assert options_text({"betas": (0.5, 0.99), "foreach": True}) == "betas=(0.5, 0.99), foreach=True"
    assert options_text({"weight_decay": 0.0, "eps": 1e-6, "mode": "max"}) == "weight_decay=0, eps=1e-06, mode=max"
