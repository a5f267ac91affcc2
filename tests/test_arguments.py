"""Wrong values are refused by name, with what was expected and what was given."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_freeze import PlanError
from lightning_freeze.arguments import check_choice, check_flag, check_number, check_positive, is_number


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), [1]])
def test_a_number_is_finite_and_no_bool(value: Any) -> None:
    assert not is_number(value)
    with pytest.raises(PlanError, match=r"^A: rate must be a finite number, got "):
        check_number(value, "rate", "A")


@pytest.mark.parametrize("value", [0, -1, 2.5, 1e-300])
def test_any_finite_number_passes(value: Any) -> None:
    check_number(value, "rate", "A")


@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_a_flag_is_a_bool(value: Any) -> None:
    with pytest.raises(PlanError, match=r"^A: fast must be true or false, got "):
        check_flag(value, "fast", "A")
    check_flag(True, "fast", "A")
    check_flag(False, "fast", "A")


@pytest.mark.parametrize("value", [0, -3, True, 1.0, "2", None])
def test_a_count_is_a_whole_number_of_at_least_the_minimum(value: Any) -> None:
    with pytest.raises(PlanError, match=r"^A: n must be a whole number of at least 1, got "):
        check_positive(value, "n", "A")
    check_positive(1, "n", "A")
    check_positive(0, "n", "A", minimum=0)
    with pytest.raises(PlanError, match="at least 0, got -1"):
        check_positive(-1, "n", "A", minimum=0)


def test_a_choice_lists_what_there_is() -> None:
    check_choice("min", ("min", "max"), "mode", "A")
    with pytest.raises(PlanError, match=r"^A: mode must be one of 'min', 'max', got 'mean'$"):
        check_choice("mean", ("min", "max"), "mode", "A")
