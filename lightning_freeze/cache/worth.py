"""Decide whether to look up the rows of a step, in an epoch in which no row comes again."""

from __future__ import annotations

_MISSES, _LONGEST = 4, 256  # steps without a known row before steps are skipped, and how many at most at a time


class Worth:
    """Decides, step by step, whether to look up the next one.

    If the steps of an epoch that began with rows find none of them, more and more steps are skipped between two that
    look. The first step that finds a row ends this.

    Example:
        >>> worth = Worth()
        >>> worth.epoch_start(rows=True)
        >>> looked = [step for step in range(30) if not worth.skips() and not worth.after(32, 0)]
        >>> looked
        [0, 1, 2, 3, 5, 8, 13, 22]
    """

    def __init__(self) -> None:
        self._rows = False
        self._misses = self._gap = self._left = 0

    def epoch_start(self, rows: bool) -> None:
        """An epoch begins.

        Args:
            rows: whether rows are stored, which may come again.
        """
        self._rows, self._misses, self._gap, self._left = rows, 0, 0, 0

    def skips(self) -> bool:
        """Whether the next step runs as it is."""
        if not self._left:
            return False
        self._left -= 1
        return True

    def after(self, asked: int, found: int) -> None:
        """A step has looked rows up.

        Args:
            asked: number of rows.
            found: number of known rows among them.
        """
        if found or not self._rows:
            self._misses = self._gap = 0
        elif asked:
            self._misses += 1
            if self._misses >= _MISSES:
                self._gap = min(max(1, 2 * self._gap), _LONGEST)
                self._left = self._gap
