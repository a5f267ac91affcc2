"""Storage for rows of one shape, with one limit for all."""

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
Address = tuple[str, bool, dict[str, Any]]  # digest of a kind of rows, whether it persists, and its description
_FIELDS = 5  # approximate size of the record of a row, in words


@dataclass(frozen=True)
class Entry:
    """A stored row.

    Attributes:
        slot: its place in the storage.
        batch: number of the batch that it was computed in, unique for all processes.
        place: its place in that batch.
    """

    slot: int
    batch: int
    place: int


@dataclass(frozen=True)
class Record:
    """A message of another process about a row, or about a comparison.

    Attributes:
        tag: slot of the row; if negative, see `Shelf`.
        first, second: the key of the row, or numbers.
        size: size of the batch that it was computed in, or a number.
        place, batch: see `Entry`, or numbers.
    """

    tag: int
    first: int
    second: int
    size: int
    place: int
    batch: int


class Rows(Protocol):
    """The interface of a store for rows of one shape."""

    bytes: int

    @property
    def pending(self) -> bool:
        """Whether there are rows that are not visible to other processes yet."""

    def put(self, keys: Sequence[Key], rows: Tensor, size: int, batch: int, places: Sequence[int]) -> list[int]:
        """Store as many rows as there is room for, and return their slots.

        Args:
            keys: the key of each row.
            rows: `(len(keys), *shape)`, on any device.
            size: size of the batch that they were computed in.
            batch: see `Entry`.
            places: see `Entry`.
        """

    def get(self, slots: Sequence[int]) -> Tensor:
        """Copy some rows, in this order."""

    def note(self, record: Record) -> None:
        """Tell other processes about a comparison."""

    def news(self) -> list[Record]:
        """New messages of other processes."""

    def torn(self, slots: Sequence[int]) -> Collection[int]:
        """Drop damaged rows, and return which they are."""

    def publish(self, valid: bool) -> None:
        """Make pending rows visible to other processes, or drop them."""

    def close(self) -> None:
        """Free memory, and delete files that do not persist."""


class Room(Protocol):
    """The interface of a storage for rows."""

    @property
    def shared(self) -> bool:
        """Whether other processes see the rows."""

    @property
    def persist(self) -> bool:
        """Whether the rows persist after the run."""

    def open(self, shape: Sequence[int], dtype: torch.dtype, address: Address | None = None) -> Rows | None:
        """Open a store for rows of one shape; None if there is no room for a single row.

        Raises:
            OSError: a file cannot be created.
        """

    def close(self) -> None:
        """Called at the end of the run."""


class Storage:
    """Storage in the memory of this process.

    Args:
        max_bytes: limit for all rows, in bytes.
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
    """Rows in memory, which is allocated as rows are added.

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
        # Not torch.empty: with deterministic algorithms it fills the memory, and would allocate all of it at once.
        with torch.inference_mode(False):  # a step may be in inference mode, and later rows come outside of it
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
        with suppress(BufferError):  # a tensor of this memory is still in use; the memory is freed with the last one
            self._map.close()
