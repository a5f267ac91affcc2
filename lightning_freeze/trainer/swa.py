"""Support for Lightning's StochasticWeightAveraging: its rates, and the epoch that it adds.

SWA makes its scheduler in the middle of a fit, after the groups were split, from one rate or one rate per user group.
Each slot gets the rate of its group times its own factor. For a model with BatchNorm, SWA adds an epoch that computes
statistics without training: schedules end before it.
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
    """Multiply the rates of SWA by the factors of stages and layers, until `release`.

    Args:
        callbacks: all callbacks of the Trainer.
        view: returns a view of the current run.

    Raises:
        OptimizerError: `swa_lrs` is a list whose length is not the number of the user's groups.
    """
    for swa in _swas(callbacks):
        _per_slot(swa._swa_lrs, view())
        setattr(swa, _METHOD, partial(_start_epoch, swa, view))


def release(callbacks: Sequence[Any]) -> None:
    """Undo `keep_factors`."""
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
    """Let the Trainer count only training epochs. Yields the current one, or the last one in the added epoch."""
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
