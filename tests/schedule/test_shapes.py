"""Shapes of a rate: where they begin, reach their top and end. Formulas: callbacks/test_stage_schedule.py."""

from __future__ import annotations

import pytest

from lightning_freeze.schedule.shapes import SHAPES, Curve


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_rises_to_its_top_and_falls_to_its_end(shape: str) -> None:
    curve = Curve(shape, warmup=0.2, start=0.1, peak=2.0, final=0.05)
    factors = [curve.at(step, 100) for step in range(103)]
    assert factors[0] == 0.2
    assert max(factors) == factors[20] == 2.0
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[100:] == [0.1] * 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_no_length_is_too_short(shape: str, length: int, warmup: float) -> None:
    curve = Curve(shape, warmup, 0.1, 1.0, 0.0)
    assert all(0 < curve.at(step, length) <= 1 for step in range(length))
    assert curve.at(length, length) == 0


def test_the_slanted_triangle_is_that_of_its_paper() -> None:
    total, part, ratio = 200, 0.1, 32  # Howard and Ruder, 2018, equation 3
    cut = int(total * part)
    curve = Curve("slanted_triangular", part, 1 / ratio, 1.0, 1 / ratio)
    for step in range(total):
        p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / part - 1))
        assert curve.at(step, total) == pytest.approx((1 + p * (ratio - 1)) / ratio, rel=1e-12)


def test_momentum_falls_while_the_rate_rises() -> None:
    curve = Curve("one_cycle", 0.5, 0.1, 1.0, 0.0)
    momenta = [curve.momentum_at(step, 10, 0.85, 0.95) for step in range(11)]
    assert momenta[0] == momenta[10] == 0.95
    assert min(momenta) == momenta[5] == 0.85


@pytest.mark.parametrize(
    ("shape", "quarter"),
    [("linear", 0.65), ("cosine", 0.65), ("one_cycle", 0.2 + 1.8 * (1 - 0.5**0.5) / 2), ("slanted_triangular", 0.65)],
)
def test_a_quarter_of_the_way_up_is_on_a_line_but_for_one_cycle(shape: str, quarter: float) -> None:
    curve = Curve(shape, warmup=0.2, start=0.1, peak=2.0, final=0.05)
    assert curve.at(5, 100) == pytest.approx(quarter, rel=1e-12)
