"""Lightning's StochasticWeightAveraging and the rates and epochs of a run with stages.

SWA makes its scheduler in the middle of a fit, long after the groups were split, from one rate or from one per group
of the user. Each slot gets the rate of its group times its own factor. For a model with BatchNorm, SWA adds an epoch
that fills statistics and trains nothing: schedules end before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning_freeze.engine.run_view import RunView
from lightning_freeze.errors import OptimizerError
from lightning_freeze.model.class_names import is_named

_METHOD = "on_train_epoch_start"  # of SWA: makes the scheduler when its time has come


def keep_factors(callbacks: Sequence[Any], view: Callable[[], RunView]) -> None:
    """Let the rates of SWA follow the factors of stages and layers, until `release`.

    Args:
        callbacks: all of the Trainer.
        view: returns the run as it is now.

    Raises:
        OptimizerError: `swa_lrs` is a list that is not as long as the user's optimizer has groups.
    """
    for swa in _swas(callbacks):
        _per_slot(swa._swa_lrs, view())
        setattr(swa, _METHOD, partial(_start_epoch, swa, view))


def release(callbacks: Sequence[Any]) -> None:
    """Leave SWA as it was before `keep_factors`."""
    for swa in _swas(callbacks):
        vars(swa).pop(_METHOD, None)


def _start_epoch(swa: Any, view: Callable[[], RunView], *args: Any) -> None:
    given = swa._swa_lrs
    swa._swa_lrs = _per_slot(given, view())
    try:
        getattr(type(swa), _METHOD)(swa, *args)
    finally:
        swa._swa_lrs = given


def _per_slot(given: float | Sequence[float], run: RunView) -> list[float]:
    """The rates of SWA, each times the factor of its slot."""
    groups = 1 + max((slot.origin for slot in run.slots), default=-1)
    rates = [given] * groups if isinstance(given, float) else list(given)
    if len(rates) != groups:
        raise OptimizerError(
            f"StochasticWeightAveraging has {len(rates)} swa_lrs, and configure_optimizers returned an optimizer of "
            f"{groups} groups.\n  Give it one rate for all groups, or one per group: they are multiplied by the "
            "factors of stages and layers"
        )
    return [rates[slot.origin] * slot.factor for slot in run.slots]


def _swas(callbacks: Sequence[Any]) -> list[Any]:
    return [one for one in callbacks if is_named(one, "StochasticWeightAveraging")]


# ---- the epoch that fills statistics


@contextmanager
def training_epochs(trainer: Any) -> Iterator[int]:
    """Let the Trainer count only the epochs that train; yields the current one, or the last of them after it."""
    added = _added_epochs(trainer)
    if not added:
        yield trainer.current_epoch
        return
    trainer.fit_loop.max_epochs -= added
    try:
        yield min(trainer.current_epoch, trainer.max_epochs - 1)
    finally:
        trainer.fit_loop.max_epochs += added


def _added_epochs(trainer: Any) -> int:
    swas = [one for one in _swas(trainer.callbacks) if getattr(one, "_model_contains_batch_norm", False)]
    planned = [swa._max_epochs for swa in swas if swa._max_epochs != -1]
    return max((trainer.max_epochs - epochs for epochs in planned), default=0)
