"""Apply the factors of slots to a rate that Lightning's LearningRateFinder found within a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.model.class_names import is_named
from lightning_freeze.optim.scheduler_lists import scaled


class FoundRates:
    """Rates found by finders with `update_attr=True`, which write one rate into every group of the optimizer.

    A finder that runs before the groups are split needs no correction: the split applies the factors.

    Args:
        callbacks: all callbacks of the Trainer.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._finders = [one for one in callbacks if is_named(one, "LearningRateFinder")]
        self._seen = [_found(finder) for finder in self._finders]

    def spread(self, run: Reconciler) -> None:
        """Multiply a rate found since the last call by the factor of each slot."""
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
    return getattr(finder, "optimal_lr", None)  # before 2.6 the attribute exists only after a search
