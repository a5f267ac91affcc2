"""Time: what is spent, what is left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Counts from its making on.

    Args:
        seconds: in all.
        spent: of these, before it was made: by a run that is resumed.
        clock: seconds; `time.process_time` counts this process alone.
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
