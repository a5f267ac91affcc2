"""The arithmetic of schedules: pure, no tensors and no Trainer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_freeze import PlanError
from lightning_freeze.schedule.moments import (
    Moment,
    Progress,
    at,
    check_span,
    check_starts,
    count_started,
    every,
    spread,
)


def starts_at(moments: list[Moment], total: int) -> list[int]:
    """The optimizer step at which each stage is first counted, walking through a whole run."""
    counts = [count_started(moments, Progress(0, step, total)) for step in range(total + 1)]
    return [next((step for step, count in enumerate(counts) if count > k), total + 1) for k in range(len(moments))]


def test_whole_numbers_are_epochs_and_any_float_makes_all_fractions() -> None:
    assert [moment.unit for moment in at([0, 2, 5], 3, "me")] == ["epoch"] * 3
    assert [moment.unit for moment in at([0, 0.5, 1], 3, "me")] == ["fraction"] * 3
    assert count_started(at([0, 2, 5], 3, "me"), Progress(epoch=4, step=10**6, total_steps=10)) == 2


@pytest.mark.parametrize(
    ("fractions", "total", "steps"),
    [
        ([0, 0.5], 10, [0, 5]),
        ([0, 0.07], 100, [0, 7]),  # 0.07 * 100 is 7.000000000000001, and not step 8
        ([0, 0.1, 0.2, 0.3, 0.6], 30, [0, 3, 6, 9, 18]),
        ([0, 0.25], 10, [0, 3]),  # not before a quarter of the run is over
        ([0, 0.0, 1.0], 10, [0, 0, 10]),  # the last one never trains
        ([0, 0.999], 10, [0, 10]),
        ([0, 1e-12], 10, [0, 0]),
    ],
)
def test_fractions_are_of_the_optimizer_steps_of_the_run(fractions: Any, total: int, steps: list[int]) -> None:
    assert starts_at(at(fractions, len(fractions), "me"), total) == steps


def test_fractions_wait_until_the_length_of_the_run_is_known() -> None:
    moments = at([0, 0.0, 0.5], 3, "me")
    assert count_started(moments, Progress(0, 10**9, None)) == 2


@pytest.mark.parametrize(
    ("curve", "span", "stages", "total", "steps"),
    [
        ("linear", (0.0, 1.0), 4, 100, [0, 25, 50, 75]),
        ("linear", (0.2, 0.8), 3, 100, [0, 40, 60]),
        ("linear", (0.0, 1.0), 1, 100, [0]),
        ("cosine", (0.0, 1.0), 4, 1000, [0, 334, 500, 667]),  # acos(1/2) / pi = 1/3
        ("cosine", (0.5, 1.0), 2, 100, [0, 75]),
    ],
)
def test_a_curve_spreads_stages_over_a_span(curve: str, span: Any, stages: int, total: int, steps: list[int]) -> None:
    assert starts_at(spread(curve, span, stages), total) == steps


@given(
    st.sampled_from(["linear", "cosine"]),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda span: span[0] < span[1]),
    st.integers(1, 40),
)
def test_a_curve_starts_at_0_never_goes_back_and_stays_in_its_span(curve: str, span: Any, stages: int) -> None:
    values = [moment.value for moment in spread(curve, span, stages)]
    assert values[0] == 0
    assert values == sorted(values)
    assert all(span[0] <= value <= span[1] + 1e-12 for value in values[1:])


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 500))
def test_every_n_starts_one_more_stage_each_n(interval: int, stages: int, now: int) -> None:
    expected = min(stages, now // interval + 1)
    assert count_started(every(interval, "epoch", stages), Progress(epoch=now)) == expected
    assert count_started(every(interval, "step", stages), Progress(step=now)) == expected


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([], "must be a list of numbers"),
        ([0, "3"], "must be a list of numbers"),
        ([0, True], "must be a list of numbers"),
        ([0, None], "must be a list of numbers"),
        ([1, 2], "must begin with 0"),
        ([0.1, 0.2], "must begin with 0"),
        ([0, 3, 2], "must not decrease"),
        ([0, 0.5, 2], "fractions of the run, and 2 is beyond its end"),
        ([0, float("nan")], "at="),
        ([0, float("inf")], "at="),
    ],
)
def test_starts_that_cannot_work_are_refused(starts: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_starts(starts, "me")


@pytest.mark.parametrize(
    "span", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0, 1.1), (0.1,), (0, 0.5, 1), (float("nan"), 1.0)]
)
def test_a_span_is_a_pair_of_fractions_in_order(span: Any) -> None:
    with pytest.raises(PlanError, match="span="):
        check_span(span, "me")


def test_there_is_one_start_per_stage() -> None:
    with pytest.raises(PlanError, match=r"me: at=\[0, 1\] has 2 starts for 3 stages"):
        at([0, 1], 3, "me")


def test_moments_read_well() -> None:
    assert [m.text(10) for m in (Moment(3, "epoch"), Moment(40, "step"), Moment(0.25, "fraction"))] == [
        "epoch 3",
        "step 40",
        "25% (step 3)",
    ]
    assert Moment(0.25, "fraction").text() == "25%"


@pytest.mark.parametrize("span", [(0, 1), (0.0, 0.5), [0.2, 1.0]])
def test_a_part_of_the_run_from_its_first_to_its_last_step_is_a_span(span: Any) -> None:
    check_span(span, "me")
