"""When epochs begin and when a run ends, in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Calendar:
    """The epochs of a run in steps of each of its optimizers.

    Attributes:
        spells: (first epoch, steps per epoch) of each part of the run; infinite steps where a loader has no length.
        end: steps of the whole run; infinite when it has no end.
        optimizers: how many the run has. Each is assumed to step once per batch, and all of these steps count in
            `trainer.global_step`.
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
