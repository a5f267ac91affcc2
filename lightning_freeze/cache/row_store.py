"""Rows of one shape in a fixed amount of memory, or in a file that the processes of a node share."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lightning_freeze.errors import PlanError

Key = tuple[int, int]
_FIELDS = 5  # words that the record of a row takes, about


@dataclass(frozen=True)
class Entry:
    """A stored row.

    Attributes:
        slot: where it is.
        batch: the batch it was computed in, a number of its own for each batch of each rank.
        place: its place in that batch.
    """

    slot: int
    batch: int
    place: int


@dataclass
class Storage:
    """Where rows are kept: a budget for all of them.

    Attributes:
        max_bytes: of all rows of this process.
        dir: the folder of the files; None: memory.
        token: names the run, the same in all its processes.
        rank, ranks: of the processes of this node.
        used: bytes taken.
    """

    max_bytes: int
    dir: Path | None = None
    token: str = ""
    rank: int = 0
    ranks: int = 1
    used: int = 0
    files: int = 0

    def open(self, shape: Sequence[int], dtype: torch.dtype) -> RowStore | None:
        """Room for rows of one shape; None: there is none for a single one.

        Raises:
            OSError: the file cannot be made.
        """
        row = prod(shape) * dtype.itemsize + 8 * _FIELDS
        if row > self.max_bytes - self.used:
            return None
        self.files += 1
        path = None if self.dir is None else self.dir / f"lightning-freeze-{self.token}-{self.rank}-{self.files}.rows"
        return RowStore(shape, dtype, self, path)


class RowStore:
    """Room for rows; memory and disk are taken up as rows come in.

    Args:
        shape, dtype: of a row.
        storage: the budget.
        path: the file; None: memory of this process.

    Examples:
        >>> store = Storage(1024).open((2,), torch.float32)
        >>> slots = store.put([(7, 7)], torch.tensor([[1.0, 2.0]]), size=1, batch=0, places=[0])
        >>> store.get(slots)
        tensor([[1., 2.]])
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, storage: Storage, path: Path | None = None) -> None:
        self.shape, self.dtype, self.path, self._storage = tuple(shape), dtype, path, storage
        self.row_bytes = prod(self.shape) * dtype.itemsize
        self._cost = self.row_bytes + 8 * _FIELDS
        self._used = 0
        rows = (storage.max_bytes - storage.used) // self._cost
        self._map = _mapped(path, max(rows * self.row_bytes, 1))
        # Not torch.empty: under deterministic algorithms it fills what it returns, and would take it all up at once.
        count = rows * prod(self.shape)
        with torch.inference_mode(False):  # a step may be in it, and later rows come outside of it
            self._data = torch.frombuffer(self._map, dtype=dtype, count=count).view(rows, *self.shape)

    @property
    def bytes(self) -> int:
        """What the rows of this process take."""
        return self._used * self.row_bytes

    @property
    def room(self) -> int:
        """How many rows more this process may put."""
        return min(len(self._data) - self._used, (self._storage.max_bytes - self._storage.used) // self._cost)

    def put(self, keys: Sequence[Key], rows: Tensor, size: int, batch: int, places: Sequence[int]) -> list[int]:
        """Store rows, as many as there is room for, and return where.

        Args:
            keys: of each row.
            rows: `(len(keys), *shape)`, on any device.
            size: of the batch that they were computed in.
            batch: see `Entry`.
            places: see `Entry`.
        """
        count = min(len(keys), self.room)
        first = self._used
        slots = list(range(first, first + count))
        self._data[first : first + count].copy_(rows[:count])
        self._used += count
        self._storage.used += count * self._cost
        return slots

    def get(self, slots: Sequence[int]) -> Tensor:
        """A copy of some rows, in this order."""
        return torch.index_select(self._data, 0, torch.tensor(slots, dtype=torch.int64))

    def close(self) -> None:
        """Give the memory, or the file, back."""
        del self._data
        self._storage.used -= self._used * self._cost
        self._used = 0
        if self.path is not None:
            with suppress(OSError):  # another rank was first
                self.path.unlink()
        with suppress(BufferError):  # somebody holds on to a tensor of it; the memory goes with the last
            self._map.close()


def _mapped(path: Path | None, size: int) -> mmap.mmap:
    if path is None:
        return mmap.mmap(-1, size)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise PlanError(
            f"{path.parent} has {free / 2**30:.1f} GiB free, and max_gb asks for {size / 2**30:.1f}.\n"
            "  Lower max_gb, or name another dir"
        )
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(descriptor, size)  # with holes: only what is written takes up disk
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
