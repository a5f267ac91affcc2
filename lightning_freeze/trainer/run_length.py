"""The length of a Trainer's run, in optimizer steps."""

from __future__ import annotations

import math
from typing import Any

from lightning_freeze.errors import PlanError
from lightning_freeze.schedule.calendar import Calendar


def calendar_of(trainer: Any, optimizers: int) -> Calendar:
    """The steps at which the epochs of a run begin and it ends. Called after the training data is set up.

    Args:
        trainer: the Trainer; accumulation may change from epoch to epoch (`GradientAccumulationScheduler`).
        optimizers: number of optimizers.
    """
    batches = trainer.num_training_batches
    spells = [(epoch, _steps(batches, window)) for epoch, window in sorted(_windows(trainer).items())]
    whole = Calendar(spells, math.inf, optimizers)
    end = math.inf if trainer.max_epochs in (None, -1) else whole.start_of(trainer.max_epochs)
    if trainer.max_steps != -1:
        end = min(end, math.ceil(trainer.max_steps / optimizers))
    return Calendar(spells, end, optimizers)


def steps_of(trainer: Any) -> int:
    """The optimizer steps of the whole run.

    Raises:
        PlanError: the run has no end.
    """
    total = trainer.estimated_stepping_batches
    if not math.isfinite(total) or total < 0:
        raise PlanError(
            "a schedule in fractions of the run needs to know how long the run is, and this one has no end.\n"
            "  Set Trainer(max_epochs=...) or max_steps, or give the schedule in epochs or steps"
        )
    return int(total)


def _windows(trainer: Any) -> dict[int, int]:
    """First epoch -> number of batches accumulated into one step."""
    for callback in trainer.callbacks:
        if "GradientAccumulationScheduler" in {cls.__name__ for cls in type(callback).__mro__}:
            return {0: 1, **callback.scheduling}
    return {0: trainer.accumulate_grad_batches}


def _steps(batches: float, window: int) -> float:
    return batches if math.isinf(batches) else math.ceil(batches / window)
