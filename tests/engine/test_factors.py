"""The factor of each parameter's rate: by depth, or as given."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from lightning_freeze import PlanError
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.factors import check_rates, rate_factors

STAGES = ["2", "1", "0"]


def factors(decay: Any, multipliers: Any) -> dict[str, float]:
    context = Context(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)))
    return rate_factors(context, decay, multipliers, STAGES, "A")[1]


def test_the_rate_of_stage_k_below_the_top_is_decay_to_the_power_of_k() -> None:
    assert factors(0.5, None) == {
        "2.weight": 1, "2.bias": 1, "1.weight": 0.5, "1.bias": 0.5, "0.weight": 0.25, "0.bias": 0.25
    }  # fmt: skip


def test_an_explicit_factor_takes_the_place_of_the_decay_and_a_later_one_wins() -> None:
    found = factors(0.5, {"1": 3.0, "*.bias": 7.0})
    assert (found["1.weight"], found["1.bias"], found["0.bias"], found["0.weight"]) == (3.0, 7.0, 7.0, 0.25)


def test_parameters_without_a_factor_are_left_out() -> None:
    assert factors(None, {"2.bias": 0.1}) == {"2.bias": 0.1}


@pytest.mark.parametrize(
    ("decay", "multipliers", "message"),
    [
        (0, None, "decay must be greater than 0 and at most 1"),
        (1.5, None, "decay must be greater than 0 and at most 1"),
        (None, {"0": 0.0}, r"the factor of '0' must be greater than 0, got 0\.0\.\n  To freeze it, use FreezeLayers"),
        (None, {"0": float("inf")}, "the factor of '0' must be a finite number"),
        (None, ["0"], "must be a dict"),
    ],
)
def test_factors_that_freeze_reverse_or_blow_up_are_refused(decay: Any, multipliers: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_rates(decay, multipliers, "A")
