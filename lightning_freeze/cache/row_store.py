"""Rows of one shape in a fixed amount of memory, or in a file that the processes of a node share."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lightning_freeze.errors import PlanError

Key = tuple[int, int]
_HEADER, _FIELDS = 4096, 5  # bytes for the number of rows of each rank; a row's key, and how it was computed


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


class RowStore:
    """Room for rows; memory and disk are taken up as rows come in.

    Args:
        shape, dtype: of a row.
        max_bytes: of all rows, those of all ranks together where they share a file.
        path: the file; None: memory of this process.
        rank, ranks: which of how many processes that share the file.

    Raises:
        PlanError: not a single row fits.

    Example:
        >>> store = RowStore((2,), torch.float32, 1024)
        >>> slots = store.put([(7, 7)], torch.tensor([[1.0, 2.0]]), size=1, batch=0, places=[0])
        >>> store.get(slots)
        tensor([[1., 2.]])
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        max_bytes: int,
        path: Path | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.shape, self.dtype, self.path = tuple(shape), dtype, path
        self.row_bytes = prod(self.shape) * dtype.itemsize
        self._rank, self._ranks, self._used = rank, ranks, 0
        self._share = int(max_bytes / (self.row_bytes + 8 * _FIELDS)) // ranks
        if self._share < 1:
            raise PlanError(f"a row takes {self.row_bytes:,} bytes, more than max_gb leaves room for")
        rows = self._share * ranks
        self._seen = [0] * ranks
        meta = rows * _FIELDS * 8 if path is not None else 0
        self._map = _mapped(path, _HEADER + meta + rows * self.row_bytes)
        # Not torch.empty: under deterministic algorithms it fills what it returns, and would take it all up at once.
        self._data = torch.frombuffer(
            self._map, dtype=dtype, offset=_HEADER + meta, count=rows * prod(self.shape)
        ).view(rows, *self.shape)
        if path is not None:
            self._counts = torch.frombuffer(self._map, dtype=torch.int64, count=ranks)
            self._meta = torch.frombuffer(self._map, dtype=torch.int64, offset=_HEADER, count=rows * _FIELDS)
            self._meta = self._meta.view(rows, _FIELDS)

    @property
    def bytes(self) -> int:
        """What the rows of this process take."""
        return self._used * self.row_bytes

    @property
    def room(self) -> int:
        """How many rows more this process may put."""
        return self._share - self._used

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
        first = self._rank * self._share + self._used
        slots = list(range(first, first + count))
        self._data[first : first + count].copy_(rows[:count])
        self._used += count
        if self.path is not None and count:
            fields = [[*keys[k], size, batch, places[k]] for k in range(count)]
            self._meta[first : first + count].copy_(torch.tensor(fields, dtype=torch.int64))
            self._counts[self._rank] = self._used  # last: who reads the number finds the rows there
        return slots

    def get(self, slots: Sequence[int]) -> Tensor:
        """A copy of some rows, in this order."""
        return torch.index_select(self._data, 0, torch.tensor(slots, dtype=torch.int64))

    def news(self) -> Iterator[tuple[Key, int, Entry]]:
        """Rows that other ranks have put since the last call: key, size of the batch, entry."""
        if self.path is None or self._ranks == 1:
            return
        counts = self._counts.tolist()
        for rank, (old, new) in enumerate(zip(self._seen, counts, strict=True)):
            first = rank * self._share
            if rank != self._rank and new > old:
                for slot, fields in enumerate(self._meta[first + old : first + new].tolist(), first + old):
                    yield (fields[0], fields[1]), fields[2], Entry(slot, fields[3], fields[4])
        self._seen = counts

    def close(self) -> None:
        """Give the memory, or the file, back."""
        del self._data
        if self.path is not None:
            del self._counts, self._meta
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
