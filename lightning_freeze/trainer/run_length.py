"""How long a run is, in optimizer steps, as its Trainer knows it."""

from __future__ import annotations

import math
from typing import Any

from lightning_freeze.schedule.calendar import Calendar


def calendar_of(trainer: Any, optimizers: int) -> Calendar:
    """When the epochs of a run begin and when it ends; once its training data is set up.

    Args:
        trainer: the Trainer, whose accumulation may change from epoch to epoch (`GradientAccumulationScheduler`).
        optimizers: how many it has.
    """
    batches = trainer.num_training_batches
    spells = [(epoch, _steps(batches, window)) for epoch, window in sorted(_windows(trainer).items())]
    whole = Calendar(spells, math.inf, optimizers)
    end = math.inf if trainer.max_epochs in (None, -1) else whole.start_of(trainer.max_epochs)
    if trainer.max_steps != -1:
        end = min(end, math.ceil(trainer.max_steps / optimizers))
    return Calendar(spells, end, optimizers)


def _windows(trainer: Any) -> dict[int, int]:
    """First epoch -> batches that accumulate into one step."""
    for callback in trainer.callbacks:
        if "GradientAccumulationScheduler" in {cls.__name__ for cls in type(callback).__mro__}:
            return {0: 1, **callback.scheduling}
    return {0: trainer.accumulate_grad_batches}


def _steps(batches: float, window: int) -> float:
    return batches if math.isinf(batches) else math.ceil(batches / window)
