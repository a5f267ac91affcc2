"""Whether a step is worth looking up: where it is not, the step runs as it is."""

from __future__ import annotations

from time import perf_counter

RATIOS = 2.0, 1.25  # how much longer looking up has to take than what is frozen, in steps that compute and store, and
# in served ones, until steps are left alone
_SAMPLES, _WARM = 12, 3  # steps that are timed, and steps before them
_GLANCE = 16  # steps that are left alone between two looks at what is frozen
_MISSES, _LONGEST = 4, 256  # steps without a known row before some are left alone, and how many at most at a time


class Clock:
    """Seconds of a step by who has used them: "step", the step itself; "own", the cache; "computing", what is frozen.

    Example:
        >>> clock = Clock()
        >>> before = clock.turn("own")
        >>> before, clock.turn(before), clock.seconds["own"] > 0
        ('step', 'own', True)
    """

    def __init__(self) -> None:
        self.seconds = {"step": 0.0, "own": 0.0, "computing": 0.0}
        self._who, self._since = "step", perf_counter()

    def turn(self, who: str) -> str:
        """From now on it is somebody else's time; returns whose it was."""
        before, now = self._who, perf_counter()
        self.seconds[before] += now - self._since
        self._who, self._since = who, now
        return before


class Worth:
    """Decides, step by step, from what the last steps have cost and found.

    Two things speak against a step. In an epoch that began with rows, steps find none of them: then more and more steps
    are left alone between two that look, and the first that finds one ends this. Or looking up takes longer than
    what is frozen: then all are left alone.

    Attributes:
        why: why all steps are left alone; "" while they are not.

    Example:
        >>> worth = Worth()
        >>> worth.epoch_start(rows=True)
        >>> looked = [step for step in range(30) if not worth.skips() and not worth.after(32, 0)]
        >>> looked
        [0, 1, 2, 3, 5, 8, 13, 22]
    """

    def __init__(self) -> None:
        self.why = ""
        self._rows = False
        self._misses = self._gap = self._left = self._steps = 0
        self._own: list[float] = []
        self._served = 0
        self._computing: list[float] = []

    def epoch_start(self, rows: bool) -> None:
        """A round of the data begins.

        Args:
            rows: some are stored, so that they may come again.
        """
        self._rows, self._misses, self._gap, self._left = rows, 0, 0, 0

    def skips(self) -> bool:
        """Whether to leave the next step alone; now and then one may see whether something else is frozen."""
        if self._left:
            self._left -= 1
            return True
        self._left = _GLANCE if self.why else 0
        return False

    def after(self, asked: int, found: int) -> None:
        """A step has looked.

        Args:
            asked: for how many rows.
            found: how many of them were known.
        """
        if found or not self._rows:
            self._misses = self._gap = 0
        elif asked:
            self._misses += 1
            if self._misses >= _MISSES:
                self._gap = min(max(1, 2 * self._gap), _LONGEST)
                self._left = self._gap

    def timed(self, own: float, computing: float, served: bool) -> None:
        """Take in the seconds of a step in which nothing was observed.

        Args:
            own: what looking up, keeping and serving took.
            computing: what frozen modules, and functions of what they return, took.
            served: something was not computed, so that `computing` says nothing.
        """
        self._steps += 1
        self._computing += [] if served or len(self._computing) == _SAMPLES else [computing]
        if self._steps <= _WARM:
            return
        self._own.append(own)
        self._served += served
        if len(self._own) == _SAMPLES and self._computing:
            mine, theirs = min(self._own), min(self._computing)  # what else runs on the machine makes others longer
            if mine > RATIOS[self._served > _SAMPLES // 2] * theirs:
                self.why = f"what is frozen takes {theirs * 1e3:.2f} ms per step, and looking it up {mine * 1e3:.2f} ms"
            self._own, self._served = [], 0
