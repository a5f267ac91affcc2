"""Intervals of few measurements."""

from __future__ import annotations

import math

import pytest

from lightning_freeze.suggest.intervals import interval, paired


def test_the_interval_of_three_values_is_students() -> None:
    mean, half = interval([0.70, 0.72, 0.74])
    assert mean == pytest.approx(0.72)
    assert half == pytest.approx(4.30 * 0.02 / 3**0.5)


def test_one_value_says_nothing_of_its_spread() -> None:
    assert interval([0.5]) == (0.5, math.inf)


def test_many_values_come_near_the_normal_interval() -> None:
    assert interval([0.0, 1.0] * 200).half == pytest.approx(2 * 0.5 / 20, rel=0.01)


def test_a_pair_is_compared_over_what_both_ran_on() -> None:
    ahead = paired({0: 0.5, 1: 0.6, 2: 0.9}, {0: 0.4, 1: 0.5})
    assert ahead.mean == pytest.approx(0.1)
    assert ahead.half == pytest.approx(0.0, abs=1e-9)
