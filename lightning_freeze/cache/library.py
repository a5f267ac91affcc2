"""The state of the cache across steps: kinds of operations, their rows, and constant tensors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.digest import Unstable, digest
from lightning_freeze.cache.graph import Facts, Kind
from lightning_freeze.cache.row_store import Address, Room
from lightning_freeze.cache.seal import version_of
from lightning_freeze.cache.shelf import FRUITLESS, Shelf
from lightning_freeze.cache.trees import Same

Filed = tuple[Any, ...]  # a digest and its description
_SHARE = 50  # so many times as long as it takes, it is not looked again whether weights are what they were


class Library:
    """All kinds and shelves.

    Args:
        room: storage for rows, with its limit.
        about: description of the run, for listings.
        verify: whether to compare stored rows with computed ones before they are used.
        warn: called with sentences about results that are not stored.
    """

    def __init__(self, room: Room, verify: bool, warn: Callable[[str], None], about: dict[str, Any]) -> None:
        self.room, self.verify, self.warn, self._about = room, verify, warn, about
        self.number = 0  # number of the step
        self.first = 1  # the first step after everything was dropped
        self.began_with_rows = False  # the epoch
        self._kinds: dict[Hashable, Kind] = {}
        self._constants: dict[int, Same] = {}
        self._epoch = 0  # the last step of the epoch before
        self._full = False
        self._due = 0.0

    def fix(self, tensors: Iterable[Tensor]) -> None:
        """Set the frozen parameters and buffers: they and their views are constants, not data."""
        strided = [tensor for tensor in tensors if tensor.layout == torch.strided and tensor.numel()]
        self._constants = {tensor.untyped_storage().data_ptr(): Same(tensor) for tensor in strided}

    def constant(self, tensor: Tensor, rows: int) -> Hashable | None:
        """The identity of a constant; None if the tensor is data."""
        if not self._constants or tensor.layout != torch.strided:
            return None
        base = self._constants.get(tensor.untyped_storage().data_ptr())
        if base is None:
            return None
        place = tensor.storage_offset(), tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()
        shape = tuple(
            -1 if size == rows and step == 0 else size for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        return "constant", base, version_of(base.value), shape, place

    def kind(self, key: Hashable, name: str, token: int, before: tuple[Kind, ...]) -> Kind:
        """The kind with this key."""
        found = self._kinds.get(key)
        if found is None:
            found = self._kinds[key] = Kind(key, name, self.number, token, before)
        found.last = self.number
        return found

    def is_fresh(self, kind: Kind) -> bool:
        """Whether a kind is new although others are known, so that it may occur only once."""
        return kind.born == self.number > self.first

    def shelf(self, kind: Kind, place: int, facts: Facts) -> Shelf | None:
        """The stored rows of a result; None if there is no room for a single row."""
        if (found := kind.shelves.get(place)) is not None:
            return found
        shape = [size for dim, size in enumerate(facts.shape) if dim != facts.rows_dim]
        try:
            address, what = self._address(kind, place, shape, facts)
            store = self.room.open(shape, facts.dtype, address)
        except OSError as error:
            self.warn(f"FeatureCache does not keep '{kind.name}': {error}")
            kind.barred = True
            return None
        if store is None:
            if not self._full:
                self._full = True
                size = facts.dtype.itemsize * torch.Size(shape).numel()
                self.warn(
                    f"FeatureCache does not keep '{kind.name}': a row takes {size:,} bytes, more than "
                    "max_gb leaves room for"
                )
            kind.barred = True
            return None
        kind.shelves[place] = Shelf(kind.name, store, self.verify, self.warn, what)
        return kind.shelves[place]

    def _address(self, kind: Kind, place: int, shape: list[int], facts: Facts) -> tuple[Address | None, Filed]:
        """The digest under which other processes find these rows, with its description; None if they cannot."""
        if not self.room.shared:
            return None, ()
        what = kind, place, shape, facts.dtype, facts.device
        try:
            name = digest(*what)
        except Unstable as why:
            if self.room.persist:
                self.warn(f"FeatureCache does not keep what comes out of '{kind.name}' for other runs: {why}.")
            return (uuid.uuid4().hex, False, {}), ()
        return (name, self.room.persist, {**self._about, "name": kind.name}), (name, *what)

    @property
    def pending(self) -> bool:
        """Whether there are rows that are not visible to other processes yet."""
        return self.room.persist and any(shelf.store.pending for shelf in self.shelves)

    def publish(self, hurry: bool = False) -> int:
        """Make new rows visible to other processes, after checking that the weights have not changed.

        Args:
            hurry: whether to do it now; otherwise it takes at most 2% of the time.

        Returns:
            The number of kinds that were dropped because the weights have changed.
        """
        start = time.monotonic()
        if (not hurry and start < self._due) or not self.pending:
            return 0
        states: dict[tuple[Any, ...], str] = {}
        changed = set()
        for kind in self._kinds.values():
            for shelf in kind.shelves.values():
                if shelf.store.pending:
                    valid = _is_as_before(shelf.filed, states)
                    shelf.store.publish(valid)
                    changed |= set() if valid else {kind}
        now = time.monotonic()
        self._due = now + _SHARE * (now - start)
        return self.drop(lambda kind: kind in changed) if changed else 0

    @property
    def shelves(self) -> list[Shelf]:
        """All shelves."""
        return [shelf for kind in self._kinds.values() for shelf in kind.shelves.values()]

    def clear(self) -> None:
        """Drop everything."""
        self.drop(lambda kind: True)
        self.began_with_rows = False
        self.first = self.number + 1

    def drop(self, unwanted: Callable[[Kind], bool]) -> int:
        """Drop kinds and all kinds that depend on them, and return how many of them had rows."""
        gone: set[int] = set()
        dropped = 0
        for key, kind in list(self._kinds.items()):  # inputs were seen before results
            if unwanted(kind) or any(id(one) in gone for one in kind.before):
                gone.add(id(kind))
                del self._kinds[key]
                dropped += bool(kind.shelves)
                for shelf in kind.shelves.values():
                    shelf.store.close()
        for kind in self._kinds.values():
            kind.targets = {at: leaves for at, leaves in kind.targets.items() if id(at[0]) not in gone}
        return dropped

    def epoch_end(self) -> bool:
        """Drop kinds that occurred once in two epochs. Returns whether rows were looked up and none was found."""
        expected = sum(shelf.expected for shelf in self.shelves)
        found = sum(shelf.found for shelf in self.shelves)
        for kind in self._kinds.values():
            for shelf in kind.shelves.values():
                if shelf.epoch_end():
                    _bar(kind)
        self.drop(lambda kind: kind.born == kind.last <= self._epoch)
        self._epoch = self.number
        self.began_with_rows = any(shelf.before for shelf in self.shelves)
        return expected >= FRUITLESS and not found


def _bar(kind: Kind) -> None:
    """Stop storing results with additional data that are new each time; their inputs are still stored."""
    for one in [kind, *_ancestors(kind)]:
        if one.joins:
            one.barred = True


def _ancestors(kind: Kind) -> list[Kind]:
    found: dict[int, Kind] = {}
    pending = list(kind.before)
    while pending:
        one = pending.pop()
        if id(one) not in found:
            found[id(one)] = one
            pending.extend(one.before)
    return list(found.values())


def _is_as_before(filed: Filed, states: dict[tuple[Any, ...], str]) -> bool:
    try:
        return bool(digest(*filed[1:], states=states) == filed[0])
    except Unstable:
        return False


def describe(kinds: Iterable[Any]) -> str:
    """The names of kinds."""
    return ", ".join(dict.fromkeys(f"'{kind.name}'" for kind in kinds))
