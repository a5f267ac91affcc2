"""A rate that Lightning's LearningRateFinder found within a fit, spread over slots that have factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.model.class_names import is_named
from lightning_freeze.optim.scheduler_lists import scaled


class FoundRates:
    """Finders with `update_attr=True` write one rate into every group of the optimizer, and level the slots with it.

    One that ran before the groups were split needs nothing: the split gives each slot its factor of what was found.

    Args:
        callbacks: all of the Trainer.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._finders = [one for one in callbacks if is_named(one, "LearningRateFinder")]
        self._seen = [_found(finder) for finder in self._finders]

    def spread(self, run: Reconciler) -> None:
        """Give each slot its factor of a rate that was found since the last call."""
        for place, finder in enumerate(self._finders):
            found = _found(finder)
            if found is None or found is self._seen[place]:
                continue
            self._seen[place] = found
            rate = found.suggestion()
            for slotted in run.optimizers:
                groups = slotted.optimizer.param_groups
                if all(group["lr"] == rate for group in groups):
                    for slot, group in zip(slotted.slots, groups, strict=True):
                        group["lr"] = scaled(rate, slot.factor)


def _found(finder: Any) -> Any:
    return getattr(finder, "optimal_lr", None)  # before 2.6 it is there only once something was found
