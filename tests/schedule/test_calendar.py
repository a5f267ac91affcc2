"""When epochs begin, in steps of each optimizer."""

from __future__ import annotations

import math

from lightning_freeze.schedule.calendar import Calendar
from lightning_freeze.schedule.moments import METRIC_DECIDES, Moment


def test_epochs_begin_after_the_steps_of_those_before() -> None:
    calendar = Calendar([(0, 6), (2, 3), (4, 2)], end=20)
    assert [calendar.start_of(epoch) for epoch in range(6)] == [0, 6, 12, 15, 18, 20]
    assert calendar.start_of(math.inf) == math.inf


def test_without_a_length_only_the_first_epoch_has_a_known_start() -> None:
    calendar = Calendar([(0, math.inf)], end=math.inf)
    assert [calendar.start_of(epoch) for epoch in (0, 1)] == [0, math.inf]


def test_a_moment_is_a_step_of_each_optimizer() -> None:
    calendar = Calendar([(0, 5)], end=20, optimizers=2)
    assert Moment(3, "epoch").step_of_each(calendar, None) == 15
    assert Moment(7, "step").step_of_each(calendar, None) == 4  # the global step counts both
    assert Moment(0.5, "fraction").step_of_each(calendar, 20) == 5
    assert Moment(0.5, "fraction").step_of_each(calendar, None) == math.inf
    assert METRIC_DECIDES.step_of_each(calendar, 20) == math.inf
