"""The optimizer steps at which epochs begin and a run ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Calendar:
    """The epochs of a run in steps of each of its optimizers.

    Attributes:
        spells: (first epoch, steps per epoch) of each part of the run; steps are infinite if a loader has no length.
        end: steps of the whole run; infinite if it has no end.
        optimizers: number of optimizers. Each is assumed to step once per batch; `trainer.global_step` counts all
            of their steps.
    """

    spells: Sequence[tuple[int, float]]
    end: float
    optimizers: int = 1

    def start_of(self, epoch: float) -> float:
        """Steps of each optimizer before an epoch begins."""
        bounds = [*self.spells, (math.inf, 0.0)]
        done = 0.0
        for (first, steps), (stop, _) in pairwise(bounds):
            if epoch > first:
                done += (min(epoch, stop) - first) * steps
        return done
