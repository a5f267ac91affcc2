"""Which stages have converged, by the change of their gradient norm."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_freeze.schedule.convergence import GradientNorms, converged, percentile, relative_changes


def test_an_update_that_is_asked_twice_counts_once() -> None:
    norms = GradientNorms()
    for step, values in ((0, [1.0, 3.0]), (0, [1.0, 3.0]), (1, [3.0, 5.0])):
        norms.add(torch.tensor(values), optimizer=7, step=step)
    assert norms.steps == 2
    assert norms.means() == [2.0, 4.0]


def test_a_step_that_a_scaler_leaves_out_adds_nothing() -> None:
    norms = GradientNorms()
    norms.add(torch.tensor([1.0, math.inf]), 7, 0)
    norms.add(torch.tensor([4.0, 2.0]), 7, 1)
    assert norms.means() == [2.0, 1.0]


def test_the_record_holds_plain_types_and_goes_on_where_it_was() -> None:
    norms = GradientNorms()
    norms.next_epoch(3, [1.0, 2.0])
    norms.add(torch.tensor([1.0, 3.0]), 7, 0)
    resumed = GradientNorms.from_record(norms.record())
    assert resumed.record() == norms.record() == {"epoch": 3, "before": [1.0, 2.0], "sums": [1.0, 3.0], "steps": 1}
    assert GradientNorms.from_record({}).means() == []


def test_an_epoch_without_steps_keeps_the_means_of_the_one_before() -> None:
    norms = GradientNorms(before=[1.0])
    norms.next_epoch(1, [])
    assert norms.before == [1.0]


def test_a_stage_without_a_gradient_has_no_change() -> None:
    assert relative_changes([1.0, 0.0, 2.0], [1.5, 1.0, 0.0]) == [0.5, math.inf, math.inf]


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_within_the_values(values: list[float], share: float) -> None:
    assert min(values) <= percentile(values, share) <= max(values) * (1 + 1e-12)


def test_stages_freeze_from_the_input_without_gaps_and_never_the_last() -> None:
    assert converged([1, 1, 1, 1], [1.0, 9.0, 1.0, 1.0], 90) == 1
    assert converged([1, 1], [1.0, 2.0], 100) == 1
    assert converged([1.0], [1.0], 100) == 0
    assert converged([0.0, 0.0], [1.0, 1.0], 50) == 0


def test_a_percentile_is_linear_between_two_values() -> None:
    assert percentile([10.0, 0.0], 50) == 5.0
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], 30) == 2.2
    assert percentile([3.0], 99) == 3.0
