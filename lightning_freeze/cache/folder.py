"""Rows in files that processes share, and that may outlive them.

Each kind of rows has a folder, named by its digest. Each process that adds rows has two files there: the rows, and
records about them, which are only appended. A record is valid if its own checksum is right, and a row is valid if the
checksum in its record is right. So torn or changed data is ignored.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.row_keys import row_keys
from lightning_freeze.cache.row_store import Address, Key, Record
from lightning_freeze.errors import PlanError

try:
    import fcntl
except ImportError:  # Windows: without this lock, processes that write at the same moment may exceed max_gb
    fcntl = None  # type: ignore[assignment]

ABOUT, LOCK, RECORDS, ROWS = "about.json", "lock", ".records", ".rows"
_WORDS = 8  # int64 values of a record: a `Record`, the checksum of the row, the checksum of the record
_WRITER = 32  # bits of a slot or batch number below the number of the file


class Folder:
    """A folder for rows.

    Args:
        path: the folder; it is created.
        max_bytes: limit for all files in it, in bytes.
        persist: whether it stays at the end.

    Raises:
        PlanError: the disk is too full.
    """

    shared = True

    def __init__(self, path: Path, max_bytes: int, persist: bool = False) -> None:
        self.path, self.max_bytes, self.persist = path, max_bytes, persist
        path.mkdir(parents=True, exist_ok=True)
        free, wanted = shutil.disk_usage(path).free, max_bytes - used(path)
        if wanted > free:
            raise PlanError(
                f"{path} has {free / 2**30:.1f} GiB free, and max_gb asks for {wanted / 2**30:.1f}.\n"
                "  Lower max_gb, or name another dir"
            )

    def open(self, shape: Sequence[int], dtype: torch.dtype, address: Address | None = None) -> RowFiles | None:
        """See `Room`."""
        name, persist, about = address or (uuid.uuid4().hex, False, {})
        with self.locked() as left:
            path = self.path / name
            if not path.exists() and left < prod(shape) * dtype.itemsize + 8 * _WORDS:
                return None
            path.mkdir(exist_ok=True)
            if persist and not (path / ABOUT).exists():
                facts = {"shape": list(shape), "dtype": str(dtype), "torch": torch.__version__, "made": time.time()}
                (path / ABOUT).write_text(json.dumps({**about, **facts}))
        return RowFiles(self, path, shape, dtype, persist)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Yield the number of free bytes, while no other process can add rows."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("wb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield self.max_bytes - used(self.path)

    def close(self) -> None:
        """See `Room`."""
        if not self.persist:
            shutil.rmtree(self.path, ignore_errors=True)


def used(path: Path) -> int:
    """The size of all files in a folder, in bytes."""
    total = 0
    with suppress(FileNotFoundError):  # another process removes them
        for kind in os.scandir(path):
            if kind.is_dir():
                total += sum(one.stat().st_size for one in os.scandir(kind.path))
    return total


class RowFiles:
    """The files of one kind of rows.

    Args:
        folder: the folder of all kinds.
        path: the folder of this kind.
        shape, dtype: shape and dtype of a row.
        persist: whether the files stay; records are written only after a check of the rows, see `publish`.
    """

    def __init__(self, folder: Folder, path: Path, shape: Sequence[int], dtype: torch.dtype, persist: bool) -> None:
        self._folder, self._path, self._persist = folder, path, persist
        self._shape, self._dtype = tuple(shape), dtype
        self._row_bytes = prod(shape) * dtype.itemsize
        self._cost = self._row_bytes + 8 * _WORDS
        self._own = _Writer(path / uuid.uuid4().hex[:16])
        self._files = [_Reader(self._own.path, self._shape, dtype)]  # by number; the first is our own
        self._names = {self._own.path.name}
        self._unread: dict[int, tuple[int, int]] = {}  # slot -> checksum and place of the record
        self._waiting: list[Tensor] = []
        self.bytes = 0

    @property
    def pending(self) -> bool:
        """Whether there are rows to publish."""
        return bool(self._waiting)

    def put(self, keys: Sequence[Key], rows: Tensor, size: int, batch: int, places: Sequence[int]) -> list[int]:
        """See `Rows`."""
        with self._folder.locked() as left, torch.inference_mode(False), torch.no_grad():
            left -= 8 * _WORDS * sum(map(len, self._waiting))
            first, count = self._own.rows, max(0, min(len(keys), left // self._cost))
            if not count:
                return []
            data = rows[:count].detach().to("cpu", copy=True).resolve_conj().resolve_neg().contiguous()
            slots = list(range(first, first + count))
            words = [[slot, *key, size, place, batch] for slot, key, place in zip(slots, keys, places, strict=False)]
            self._own.write(data, first * self._row_bytes)
            self._append(torch.cat([torch.tensor(words), _checksums(data).unsqueeze(1)], 1))
        self.bytes += count * self._row_bytes
        return slots

    def note(self, record: Record) -> None:
        """See `Rows`."""
        words = [record.tag, record.first, record.second, record.size, record.place, record.batch, 0]
        with self._folder.locked() as left, torch.inference_mode(False):
            if left >= 8 * _WORDS:
                self._append(torch.tensor([words]))

    def _append(self, words: Tensor) -> None:
        records = torch.cat([words, _checksums(words).unsqueeze(1)], 1)
        if self._persist:
            self._waiting.append(records)
        else:
            self._own.append(records)

    def publish(self, valid: bool) -> None:
        """See `Rows`."""
        if valid and self._waiting:
            with self._folder.locked():
                self._own.append(torch.cat(self._waiting))
        self._waiting.clear()

    def news(self) -> list[Record]:
        """See `Rows`."""
        with suppress(FileNotFoundError):
            names = sorted(one.name for one in os.scandir(self._path) if one.name.endswith(RECORDS))
            for name in names:
                if name.removesuffix(RECORDS) not in self._names:
                    self._names.add(name.removesuffix(RECORDS))
                    self._files.append(_Reader(self._path / name.removesuffix(RECORDS), self._shape, self._dtype))
        found: list[Record] = []
        for number, file in enumerate(self._files[1:], start=1):
            for place, (tag, *words, checksum, _) in file.news():
                if tag >= 0:
                    tag += number << _WRITER
                    words[-1] += number << _WRITER
                    self._unread[tag] = checksum, place
                    self.bytes += self._row_bytes
                found.append(Record(tag, *words))
        return found

    def get(self, slots: Sequence[int]) -> Tensor:
        """See `Rows`."""
        files: dict[int, list[int]] = {}
        for place, slot in enumerate(slots):
            files.setdefault(slot >> _WRITER, []).append(place)
        made = torch.empty(len(slots), *self._shape, dtype=self._dtype)
        for number, places in files.items():
            rows = torch.tensor([slots[place] & ((1 << _WRITER) - 1) for place in places])
            found = torch.index_select(self._files[number].mapped(int(rows.max())), 0, rows)
            if len(files) == 1:
                return found
            made[places] = found
        return made

    def torn(self, slots: Sequence[int]) -> Collection[int]:
        """See `Rows`."""
        new = [slot for slot in slots if slot in self._unread]
        there = [slot for slot in new if self._has(slot)]
        with torch.inference_mode(False):
            sums = dict(zip(there, _checksums(self.get(there)).tolist(), strict=True)) if there else {}
        wrong = {slot for slot in new if sums.get(slot) != self._unread[slot][0]}
        for slot in new:
            _, place = self._unread.pop(slot)
            if slot in wrong:
                self._files[slot >> _WRITER].strike(place)
                self.bytes -= self._row_bytes
        return wrong

    def _has(self, slot: int) -> bool:
        row = slot & ((1 << _WRITER) - 1)
        return len(self._files[slot >> _WRITER].mapped(row)) > row

    def close(self) -> None:
        """See `Rows`."""
        self._waiting.clear()
        self._files.clear()
        self._own.close(self._persist)


def _checksums(rows: Tensor) -> Tensor:
    return row_keys([rows.reshape(len(rows), -1)], len(rows))[:, 0]


class _Writer:
    """The files that this process writes; they are created with the first row."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._files: dict[str, io.FileIO] = {}

    def _file(self, ending: str) -> io.FileIO:
        if ending not in self._files:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._files[ending] = io.FileIO(f"{self.path}{ending}", "xb")
        return self._files[ending]

    def write(self, rows: Tensor, offset: int) -> None:
        """Write rows at a place."""
        file = self._file(ROWS)
        file.seek(offset)
        _write(file, rows)
        self.rows += len(rows)

    def append(self, records: Tensor) -> None:
        """Append records."""
        _write(self._file(RECORDS), records)

    def close(self, keep: bool) -> None:
        """Close the files, and remove them or the parts without records."""
        named = RECORDS in self._files
        for ending, file in self._files.items():
            file.close()
            if not (keep and named):
                with suppress(OSError):
                    Path(f"{self.path}{ending}").unlink()
        self._files.clear()


def _write(file: io.FileIO, data: Tensor) -> None:
    numbers: Any = data.reshape(-1).view(torch.uint8).numpy()
    left = memoryview(numbers)
    while left:
        left = left[file.write(left) :]


class _Reader:
    """Reads the files of one process as they grow."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype
        self._read = 0
        self._rows = torch.empty(0, *shape, dtype=dtype)

    def news(self) -> Iterator[tuple[int, list[int]]]:
        """The new records, each with its place."""
        first = self._read
        try:
            with Path(f"{self._path}{RECORDS}").open("rb") as file:
                file.seek(first * 8 * _WORDS)
                data = bytearray(file.read())
        except OSError:
            return
        count = len(data) // (8 * _WORDS)
        if not count:
            return
        self._read += count
        with torch.inference_mode(False):
            words = torch.frombuffer(data, dtype=torch.int64, count=count * _WORDS).view(count, _WORDS)
            right = (_checksums(words[:, :-1].contiguous()) == words[:, -1]).tolist()
        for place, (fine, record) in enumerate(zip(right, words.tolist(), strict=True), start=first):
            if fine:
                yield place, record

    def mapped(self, row: int) -> Tensor:
        """The memory-mapped rows, at least up to this one, if the file has it."""
        if row >= len(self._rows):
            with suppress(OSError, ValueError), Path(f"{self._path}{ROWS}").open("rb") as file:
                count = os.fstat(file.fileno()).st_size // (self._rows.element_size() * prod(self._shape))
                size = count * self._rows.element_size() * prod(self._shape)
                private = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
                with torch.inference_mode(False):
                    found = torch.frombuffer(private, dtype=self._dtype, count=count * prod(self._shape))
                    self._rows = found.view(count, *self._shape)
        return self._rows

    def strike(self, place: int) -> None:
        """Invalidate a record permanently."""
        with suppress(OSError), Path(f"{self._path}{RECORDS}").open("r+b") as file:
            file.seek(place * 8 * _WORDS)
            file.write(bytes(8 * _WORDS))


def kinds_in(path: Path) -> list[dict[str, Any]]:
    """The descriptions of the kinds of rows in a folder, with number of rows, bytes and time of the last addition."""
    found = []
    for about in sorted(path.glob(f"*/{ABOUT}")):
        files = [one.stat() for one in about.parent.iterdir()]
        readers = [_Reader(one.with_suffix(""), (1,), torch.uint8) for one in about.parent.glob(f"*{RECORDS}")]
        rows = sum(record[0] >= 0 for reader in readers for _, record in reader.news())
        told: Any = {}
        with suppress(ValueError):  # it is torn
            told = json.loads(about.read_text())
        size, last = sum(one.st_size for one in files), max(one.st_mtime for one in files)
        found.append({**told, "path": about.parent, "rows": rows, "bytes": size, "used": last})
    return found


def clear(path: Path) -> None:
    """Remove all persistent rows, and nothing else.

    Raises:
        OSError: a file cannot be removed.
    """
    for kind in kinds_in(path):
        shutil.rmtree(kind["path"])
    (path / LOCK).unlink(missing_ok=True)
