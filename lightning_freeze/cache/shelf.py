"""Look up, serve, compare and store the rows of one result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.row_index import RowIndex
from lightning_freeze.cache.row_store import Entry, Key, Record, Rows

CONFIRMED, COMPARED, WRONG = -1, -2, -3  # tags of a `Record` for messages other than rows

FRUITLESS = 8.0  # expected but unknown rows until inputs count as new; chance: 0.0003


@dataclass
class Lookup:
    """The result of looking up the rows of a batch.

    Attributes:
        shelf: the shelf.
        keys: the key of each row.
        entries: the entry of each row; None: unknown.
        mode: whether gradients and inference mode are enabled, as a number below 4.
        known, missing: places of known and unknown rows.
    """

    shelf: Shelf
    keys: Sequence[Key]
    entries: list[Entry | None]
    mode: int = 1
    known: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = [place for place, entry in enumerate(self.entries) if entry is not None]
        self.missing = [place for place, entry in enumerate(self.entries) if entry is None]

    @property
    def level(self) -> int:
        """Even: exactly a batch that was computed before, in the same order; odd: rows of several batches, or moved."""
        batches = {entry.batch for entry in self.entries if entry is not None}
        still = all(entry is not None and entry.place == place for place, entry in enumerate(self.entries))
        return 2 * self.mode + (not still or len(batches) > 1)

    def usable(self) -> bool:
        """Whether the known rows may be used."""
        if self.shelf.wrong or not self.known:
            return False
        return not self.shelf.verify or self.shelf.index.proven(len(self.keys), self.level)

    def fewer(self) -> int | None:
        """The smallest batch size for the missing rows, in steps of an eighth, that may give the same bits."""
        size = len(self.keys)
        step = -(-size // 8)
        sizes = range(-(-len(self.missing) // step) * step, size, step)
        return next((few for few in sizes if not self.shelf.index.apart(few, size)), None)

    def filled(self, few: int) -> list[int]:
        """The places of the missing rows, padded to a batch of `few`."""
        return [*self.missing, *self.missing[-1:] * (few - len(self.missing))]

    def filling(self) -> list[int] | None:
        """The places to compute, in a batch that gives the same bits; None: compute the whole batch."""
        if not self.usable():
            return None
        if not self.missing:
            return []
        few = self.fewer()
        return None if few is None or not self.shelf.index.same(few, len(self.keys)) else self.filled(few)


class Shelf:
    """Stored rows of one result of one operation, of any batch size.

    Args:
        name: name of the module that they come from, for messages.
        store: the store for rows.
        verify: whether to compare stored rows with computed ones before they are used.
        warn: called with the reason why rows are not served.
        filed: the digest under which other processes find the rows, with its description.
    """

    def __init__(
        self, name: str, store: Rows, verify: bool, warn: Callable[[str], None], filed: tuple[Any, ...] = ()
    ) -> None:
        self.name, self.store, self.verify, self.filed, self._warn = name, store, verify, filed, warn
        self.index = RowIndex()
        self.wrong = ""  # the reason why rows are not served
        self._batches = 0
        self.seen = self.asked = self.found = 0  # rows of this epoch: all; those of batch sizes with rows; known ones
        self.before = self.last = 0  # rows stored when the epoch began, and all rows of the previous epoch

    def look(self, size: int, keys: Sequence[Key], mode: int = 1, counted: bool = True) -> Lookup:
        """Look up rows by keys for a batch of this size; `counted` if training asks."""
        entries = self.index.find(size, keys)
        if None in entries and self._heard():
            entries = self.index.find(size, keys)
        if torn := self.store.torn([entry.slot for entry in entries if entry is not None]):
            gone = [key for key, entry in zip(keys, entries, strict=True) if entry is not None and entry.slot in torn]
            self.index.remove(size, gone)
            entries = self.index.find(size, keys)
        found = Lookup(self, keys, entries, mode)
        if counted:
            self.seen += size
            self.asked += size if self.index.holds(size) else 0
            self.found += len(found.known)
        return found

    def gather(self, look: Lookup) -> Tensor:
        """The known rows."""
        return self.store.get([entry.slot for entry in look.entries if entry is not None])

    def learn(self, look: Lookup, rows: Tensor) -> None:
        """Compare computed rows with those that are stored, and store the others."""
        if self.wrong:
            return
        self._compare(look, rows)
        if look.missing and not self.wrong:
            self._compare_sizes(look, rows)
            self.insert(look, look.missing, rows[look.missing], len(look.keys))

    def _compare(self, look: Lookup, rows: Tensor) -> None:
        if not look.known or not self.verify or look.usable():
            return
        stored, level = self.gather(look), look.level
        if same_bits(rows[look.known], stored.to(rows.device)):
            self._note(CONFIRMED, len(look.keys), level, stored.numel())
        else:
            self._note(WRONG, level)

    def _compare_sizes(self, look: Lookup, rows: Tensor) -> None:
        """Compare with rows from batches of other sizes; equal sizes can share rows."""
        size = len(look.keys)
        for other in self.index.others(size):
            found = [
                (place, entry) for place, entry in enumerate(self.index.find(other, look.keys)) if entry is not None
            ]
            if found:
                stored = self.store.get([entry.slot for _, entry in found]).to(rows.device)
                equal = same_bits(rows[[place for place, _ in found]], stored)
                self._note(COMPARED, size, other, 2 * look.mode + 1, stored.numel() if equal else 0)
        look.entries = self.index.find(size, look.keys)
        look.__post_init__()

    def tried(self, look: Lookup, few: int, values: Tensor | None, wanted: Tensor) -> None:
        """Record that a smaller batch was computed beside the whole one; None if that failed."""
        equal = values is not None and same_bits(values, wanted)
        self._note(COMPARED, few, len(look.keys), 2 * look.mode + 1, wanted.numel() if equal else 0)

    def insert(self, look: Lookup, places: Sequence[int], rows: Tensor, size: int) -> None:
        """Store rows computed in a batch of this size."""
        number = self._batches = self._batches + 1
        keys = [look.keys[place] for place in places]
        try:
            slots = self.store.put(keys, rows, size, number, places)
        except OSError as error:
            self._refuse(f"rows of '{self.name}' cannot be written: {error}")
            return
        pairs = zip(keys, slots, places, strict=False)
        self.index.add(size, [(key, Entry(slot, number, place)) for key, slot, place in pairs])

    # ---- comparisons, and messages of other processes

    def _note(self, what: int, *numbers: int) -> None:
        """Record a comparison, and tell other processes."""
        self._apply(what, *numbers)
        with suppress(OSError):  # other processes find it out themselves
            self.store.note(Record(what, *numbers, *[0] * (5 - len(numbers))))

    def _apply(self, what: int, *numbers: int) -> None:
        if what == CONFIRMED:
            self.index.confirmed(*numbers[:3])
        elif what == COMPARED:
            self.index.compared(*numbers[:4])
        elif what == WRONG:
            how = "in another batch" if numbers[0] % 2 else "a second time"
            self._refuse(f"'{self.name}' gives a row other values when it is computed {how}")

    def _refuse(self, why: str) -> None:
        if not self.wrong:
            self.wrong = why
            self._warn(f"FeatureCache does not keep all that it could: {why}.")

    def _heard(self) -> bool:
        """Read the messages of other processes, and return whether there were any."""
        records = self.store.news()
        for one in records:
            if one.tag >= 0:
                self.index.add(one.size, [((one.first, one.second), Entry(one.tag, one.batch, one.place))])
            else:
                self._apply(one.tag, one.first, one.second, one.size, one.place)
        return bool(records)

    @property
    def expected(self) -> float:
        """The number of rows of this epoch that should be known if they are the rows of the previous epoch."""
        return self.asked * min(1.0, self.before / max(self.seen, self.last, 1))

    def epoch_end(self) -> bool:
        """Whether the inputs are always new: an epoch that began with rows found none of them."""
        new = self.expected >= FRUITLESS and not self.found
        self.before, self.last = len(self.index), max(self.seen, self.last)
        self.seen = self.asked = self.found = 0
        return new


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype are equal bit for bit: NaN equals itself, and 0 is not -0."""
    return torch.equal(*(t.contiguous().view(torch.uint8) if t.dim() else t for t in (one, other)))


def rows_first(tensor: Tensor, dim: int | None) -> Tensor:
    """A view with the rows in the first dimension; a tensor without rows becomes one row."""
    return tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)


def put_rows(facts: Any, known: list[int], stored: Tensor, missing: list[int], filled: Tensor | None) -> Tensor:
    """Make a tensor with the recorded shape and strides from stored and computed rows."""
    stored = stored.to(facts.device)
    if not missing and facts.rows_dim == 0 and tuple(stored.stride()) == facts.stride and stored.shape == facts.shape:
        return stored
    made = torch.empty_strided(facts.shape, facts.stride, dtype=facts.dtype, device=facts.device)
    rows = rows_first(made, facts.rows_dim)
    if not missing:
        rows.copy_(stored)
        return made
    rows[known] = stored
    if filled is not None:
        rows[missing] = filled
    return made
