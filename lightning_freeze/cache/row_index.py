"""The known rows for each batch size.

A matrix product may give a row other bits in a batch of another size. So rows computed in batches of one size are
used for another only after a comparison has shown that both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_freeze.cache.row_store import Entry, Key

EVIDENCE = 64  # numbers that must be equal before two ways to compute them count as identical


class RowIndex:
    """Entries by key, in families of batch sizes that give the same bits.

    Examples:
        >>> index = RowIndex()
        >>> index.add(8, [((1, 1), Entry(0, 0, 0))])
        >>> index.find(8, [(1, 1), (2, 2)])
        [Entry(slot=0, batch=0, place=0), None]
        >>> index.find(3, [(1, 1)])
        [None]
        >>> index.compared(3, 8, level=0, numbers=100)
        >>> index.find(3, [(1, 1)])
        [Entry(slot=0, batch=0, place=0)]
    """

    def __init__(self) -> None:
        self._root: dict[int, int] = {}
        self._rows: dict[int, dict[Key, Entry]] = {}
        self._apart: set[frozenset[int]] = set()
        self._evidence: dict[frozenset[int], int] = {}
        self._proof: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def _family(self, size: int) -> int:
        while (root := self._root.setdefault(size, size)) != size:
            size = root
        self._rows.setdefault(size, {})
        return size

    def holds(self, size: int) -> bool:
        """Whether any rows are known for a batch of this size."""
        return bool(self._rows[self._family(size)])

    def find(self, size: int, keys: Sequence[Key]) -> list[Entry | None]:
        """The entries of rows for a batch of this size; None for unknown rows."""
        return list(map(self._rows[self._family(size)].get, keys))

    def add(self, size: int, entries: Iterable[tuple[Key, Entry]]) -> None:
        """Add rows that were computed in a batch of this size."""
        self._rows[self._family(size)].update(entries)

    def remove(self, size: int, keys: Iterable[Key]) -> None:
        """Remove rows."""
        rows = self._rows[self._family(size)]
        for key in keys:
            rows.pop(key, None)

    def others(self, size: int) -> list[int]:
        """Families that may have the same bits as this size, which is not known yet."""
        mine = self._family(size)
        return [other for other in self._rows if other != mine and not self.apart(other, mine)]

    def same(self, size: int, other: int) -> bool:
        """Whether two sizes are known to give the same bits."""
        return self._family(size) == self._family(other)

    def apart(self, size: int, other: int) -> bool:
        """Whether two sizes are known to give other bits."""
        return frozenset((self._family(size), self._family(other))) in self._apart

    def compared(self, size: int, other: int, level: int, numbers: int) -> None:
        """Record that the same rows were computed in batches of two sizes.

        Args:
            size: size of one batch.
            other: size of the other batch.
            level: see `confirmed`.
            numbers: count of equal numbers; 0 if any differed.
        """
        mine, theirs = self._family(size), self._family(other)
        pair = frozenset((mine, theirs))
        if mine == theirs:
            return
        if not numbers:
            self._apart.add(pair)
            return
        self._evidence[pair] = self._evidence.get(pair, 0) + numbers
        if self._evidence[pair] >= EVIDENCE:
            self._root[mine] = theirs
            self._rows[theirs] = {**self._rows.pop(mine), **self._rows[theirs]}
            self._proof[theirs, level] = EVIDENCE
            self._apart = {frozenset(theirs if one == mine else one for one in apart) for apart in self._apart}

    def confirmed(self, size: int, level: int, numbers: int) -> None:
        """Record that numbers of stored rows were computed again and were equal.

        Args:
            size: size of the batch.
            level: see `shelf.Lookup`.
            numbers: count of numbers.
        """
        key = self._family(size), level
        self._proof[key] = self._proof.get(key, 0) + numbers

    def proven(self, size: int, level: int) -> bool:
        """Whether enough numbers were confirmed to use stored rows for a batch."""
        return self._proof.get((self._family(size), level), 0) >= EVIDENCE
