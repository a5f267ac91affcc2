"""The time that is spent and left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """A time budget that starts at construction.

    Args:
        seconds: the whole budget.
        spent: seconds spent before, by a search that is resumed.
        clock: returns seconds; `time.process_time` counts this process only.
    """

    def __init__(self, seconds: float, spent: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self.clock = seconds, clock
        self._began = clock() - spent

    @property
    def spent(self) -> float:
        return self.clock() - self._began

    @property
    def left(self) -> float:
        return self.seconds - self.spent
