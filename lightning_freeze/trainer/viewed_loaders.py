"""Let the training loaders of a Trainer give at most K augmented versions of each sample."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from lightning_freeze.cache.views import Drawing, seed_of, viewed, why_not
from lightning_freeze.errors import PlanError
from lightning_freeze.trainer._lightning import Trainer

_HOOK = "process_dataloader"  # the strategy's last method called on a loader before it is used


def default_seed() -> int:
    """The seed of the run: that of `seed_everything`, else 0, as in Lightning's distributed samplers."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


class ViewedLoaders:
    """Replace the training loaders of a Trainer. In epoch e every sample has version e mod `views`.

    Args:
        trainer: the Trainer.
        views: number of versions of each sample.
        seed: returns the seed; called at the start of each pass.
    """

    def __init__(self, trainer: Trainer, views: int, seed: Callable[[], int]) -> None:
        self._trainer, self._views, self._seed = trainer, views, seed
        self._drawings: list[Drawing] = []
        self._begun: tuple[int, int] | None = None
        own = vars(trainer.strategy).get(_HOOK)
        self._own, self._before = own, getattr(trainer.strategy, _HOOK)
        trainer.strategy.__dict__[_HOOK] = self._process

    def close(self) -> None:
        """Restore the loaders of the Trainer."""
        hooks = vars(self._trainer.strategy)
        if hooks.get(_HOOK) == self._process:
            hooks.pop(_HOOK)
            if self._own is not None:
                hooks[_HOOK] = self._own

    def _process(self, loader: Any) -> Any:
        loader = self._before(loader)
        if not self._trainer.training:  # validation loaders are processed here too
            return loader
        if why := why_not(loader):
            raise PlanError(f"FeatureCache(views={self._views}): the training loader {why}.\n  Leave out views")
        twin, drawing = viewed(loader, lambda: self._draw(drawing))
        self._drawings.append(drawing)
        return twin

    def _now(self) -> tuple[int, int]:
        # not `current_epoch`: after a resume, Lightning reads the first batches before it counts the last epoch
        progress: Any = self._trainer.fit_loop.epoch_progress.current
        return self._seed(), progress.processed % self._views

    def _draw(self, drawing: Drawing) -> Callable[[Any], int]:
        """Start a pass of a loader. Loaders that are combined use different seeds."""
        self._begun = self._now()
        used = self._drawings = self._in_use()
        return partial(seed_of, *self._begun, used.index(drawing) if drawing in used else 0)

    def _in_use(self) -> list[Drawing]:
        combined: Any = self._trainer.fit_loop._combined_loader
        used = [one for loader in combined.flattened for one in (loader.batch_sampler, loader.sampler)]
        return [one for one in used if isinstance(one, Drawing)]

    def catch_up(self) -> None:
        """At the start of training, restart the first pass if it began before a checkpoint was loaded."""
        if self._begun not in (None, self._now()):
            iter(cast(Any, self._trainer.fit_loop._data_fetcher))

    def check(self) -> None:
        """Check after a batch that it came from a replaced sampler.

        Raises:
            PlanError: it did not.
        """
        if any(not drawing.begun for drawing in self._drawings):
            raise PlanError(
                f"FeatureCache(views={self._views}): the training loader did not ask its sampler for the batch, so its "
                "versions cannot be counted.\n  Use a plain torch DataLoader, or leave out views"
            )
