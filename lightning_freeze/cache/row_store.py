"""Rows of one shape in memory, of which all together have a budget."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

Key = tuple[int, int]
Address = tuple[str, bool, dict[str, Any]]  # the name of a kind of rows, whether it is kept, and what is told of it
_FIELDS = 5  # words that the record of a row takes, about


@dataclass(frozen=True)
class Entry:
    """A stored row.

    Attributes:
        slot: where it is.
        batch: the batch it was computed in, a number of its own for each batch of each process.
        place: its place in that batch.
    """

    slot: int
    batch: int
    place: int


@dataclass(frozen=True)
class Record:
    """What another process tells of a row, or of what it has found out.

    Attributes:
        tag: where the row is; below 0: see `Shelf`.
        first, second: its key, or numbers.
        size: of the batch that it was computed in, or a number.
        place, batch: see `Entry`, or numbers.
    """

    tag: int
    first: int
    second: int
    size: int
    place: int
    batch: int


class Rows(Protocol):
    """Rows of one shape, wherever they are."""

    bytes: int

    @property
    def pending(self) -> bool:
        """Whether there is something that others have not been shown."""

    def put(self, keys: Sequence[Key], rows: Tensor, size: int, batch: int, places: Sequence[int]) -> list[int]:
        """Store rows, as many as there is room for, and return where.

        Args:
            keys: of each row.
            rows: `(len(keys), *shape)`, on any device.
            size: of the batch that they were computed in.
            batch: see `Entry`.
            places: see `Entry`.
        """

    def get(self, slots: Sequence[int]) -> Tensor:
        """A copy of some rows, in this order."""

    def note(self, record: Record) -> None:
        """Tell others what was found out."""

    def news(self) -> list[Record]:
        """What others have told since."""

    def torn(self, slots: Sequence[int]) -> Collection[int]:
        """Those of some rows that are not what was written; they are dropped."""

    def publish(self, valid: bool) -> None:
        """Show others what is pending, or drop it."""

    def close(self) -> None:
        """Give the memory, or what is not to be kept on disk, back."""


class Room(Protocol):
    """Where rows are kept."""

    @property
    def shared(self) -> bool:
        """Whether other processes see what is put there."""

    @property
    def persist(self) -> bool:
        """Whether it is there after the run."""

    def open(self, shape: Sequence[int], dtype: torch.dtype, address: Address | None = None) -> Rows | None:
        """Room for rows of one shape; None: there is none for a single one.

        Raises:
            OSError: a file cannot be made.
        """

    def close(self) -> None:
        """The run is over."""


class Storage:
    """Room in the memory of this process.

    Args:
        max_bytes: of all rows.
    """

    shared = persist = False

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.used = max_bytes, 0

    def open(self, shape: Sequence[int], dtype: torch.dtype, address: Address | None = None) -> RowStore | None:
        """See `Room`."""
        row = prod(shape) * dtype.itemsize + 8 * _FIELDS
        return RowStore(shape, dtype, self) if row <= self.max_bytes - self.used else None

    def close(self) -> None:
        """See `Room`."""


class RowStore:
    """Rows in memory, which is taken up as they come in.

    Examples:
        >>> store = Storage(1024).open((2,), torch.float32)
        >>> slots = store.put([(7, 7)], torch.tensor([[1.0, 2.0]]), size=1, batch=0, places=[0])
        >>> store.get(slots)
        tensor([[1., 2.]])
    """

    pending = False

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, storage: Storage) -> None:
        self._storage, self._used, self.bytes = storage, 0, 0
        self._row_bytes = prod(shape) * dtype.itemsize
        self._cost = self._row_bytes + 8 * _FIELDS
        rows = (storage.max_bytes - storage.used) // self._cost
        self._map = mmap.mmap(-1, rows * self._row_bytes)
        # Not torch.empty: under deterministic algorithms it fills what it returns, and would take it all up at once.
        with torch.inference_mode(False):  # a step may be in it, and later rows come outside of it
            self._data = torch.frombuffer(self._map, dtype=dtype, count=rows * prod(shape)).view(rows, *shape)

    def put(self, keys: Sequence[Key], rows: Tensor, size: int, batch: int, places: Sequence[int]) -> list[int]:
        """See `Rows`."""
        room = (self._storage.max_bytes - self._storage.used) // self._cost
        count, first = min(len(keys), len(self._data) - self._used, room), self._used
        self._data[first : first + count].copy_(rows[:count])
        self._used += count
        self._storage.used += count * self._cost
        self.bytes = self._used * self._row_bytes
        return list(range(first, first + count))

    def get(self, slots: Sequence[int]) -> Tensor:
        """See `Rows`."""
        return torch.index_select(self._data, 0, torch.tensor(slots, dtype=torch.int64))

    def note(self, record: Record) -> None:
        """See `Rows`."""

    def news(self) -> list[Record]:
        """See `Rows`."""
        return []

    def torn(self, slots: Sequence[int]) -> Collection[int]:
        """See `Rows`."""
        return ()

    def publish(self, valid: bool) -> None:
        """See `Rows`."""

    def close(self) -> None:
        """See `Rows`."""
        del self._data
        self._storage.used -= self._used * self._cost
        self._used = self.bytes = 0
        with suppress(BufferError):  # somebody holds on to a tensor of it; the memory goes with the last
            self._map.close()
