"""The length of a run is what Lightning makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers import Net, Spy, fit
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_freeze import PlanError
from lightning_freeze.trainer.run_length import calendar_of, steps_of


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, []),
        ({"accumulate_grad_batches": 3}, []),
        ({"limit_train_batches": 0.5}, []),
        ({"max_steps": 11}, []),
        ({}, [GradientAccumulationScheduler({1: 4, 2: 2})]),
    ],
)
def test_epochs_begin_and_the_run_ends_where_the_calendar_says(options: Any, more: list[Any]) -> None:
    starts = Spy("on_train_epoch_start", lambda trainer, _: trainer.global_step)
    calendars = Spy("on_train_start", lambda trainer, _: calendar_of(trainer, 1))
    running = fit(Net(), [starts, calendars, *more], epochs=3, steps=7, **options)
    (calendar,) = calendars.seen
    if not more:  # Lightning counts with the window of the epoch that it is in
        assert steps_of(running) == calendar.end
    assert starts.seen == [calendar.start_of(epoch) for epoch in range(len(starts.seen))]
    assert running.global_step == calendar.end


def test_a_run_without_an_end_has_none() -> None:
    def look(trainer: Any, _: Any) -> Any:
        trainer.should_stop = True
        return calendar_of(trainer, 1)

    def refused(trainer: Any, _: Any) -> None:
        with pytest.raises(PlanError, match=r"this one has no end.*\n.*Set Trainer\(max_epochs"):
            steps_of(trainer)

    fit(Net(), [Spy("on_train_start", refused), Spy("on_train_start", look)], max_epochs=-1)
    calendars = Spy("on_train_start", look)
    fit(Net(), [calendars], max_epochs=-1)
    assert calendars.seen[0].end == math.inf
