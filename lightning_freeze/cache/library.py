"""What the cache knows over all steps: kinds of operations, their rows, and the tensors that never change."""

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

Filed = tuple[Any, ...]  # a digest, and what it is of
_SHARE = 50  # so many times as long as it takes, it is not looked again whether weights are what they were


class Library:
    """Kinds and shelves.

    Args:
        room: where rows are kept, and how many.
        about: of the run, for whoever lists what is kept.
        verify: compare stored rows with computed ones before they are used.
        warn: is told what is not kept, and why.
    """

    def __init__(self, room: Room, verify: bool, warn: Callable[[str], None], about: dict[str, Any]) -> None:
        self.room, self.verify, self.warn, self._about = room, verify, warn, about
        self.number = 0  # of the step
        self.first = 1  # the first after all was forgotten
        self.began_with_rows = False  # the epoch
        self._kinds: dict[Hashable, Kind] = {}
        self._constants: dict[int, Same] = {}
        self._epoch = 0  # the last step of the epoch before
        self._full = False
        self._due = 0.0

    def fix(self, tensors: Iterable[Tensor]) -> None:
        """The parameters and buffers that do not train: they, and views of them, are no data."""
        strided = [tensor for tensor in tensors if tensor.layout == torch.strided and tensor.numel()]
        self._constants = {tensor.untyped_storage().data_ptr(): Same(tensor) for tensor in strided}

    def constant(self, tensor: Tensor, rows: int) -> Hashable | None:
        """What tells a constant from others; None: it is data."""
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
        """Whether it may be one that comes once: it is new, and others are not."""
        return kind.born == self.number > self.first

    def shelf(self, kind: Kind, place: int, facts: Facts) -> Shelf | None:
        """The rows of a result; None: there is no room for a single one."""
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
        """Where other processes look for these rows, and what their digest is of; None: they do not."""
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
        """Whether there is something that no other process has been shown."""
        return self.room.persist and any(shelf.store.pending for shelf in self.shelves)

    def publish(self, hurry: bool = False) -> int:
        """Show other processes what came in, when it is sure that it is of the weights that it is filed under.

        Args:
            hurry: now; else it is seen to that this takes 2% of the time.

        Returns:
            How many kinds were dropped, because it is not.
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
        """All of them."""
        return [shelf for kind in self._kinds.values() for shelf in kind.shelves.values()]

    def clear(self) -> None:
        """Begin anew."""
        self.drop(lambda kind: True)
        self.began_with_rows = False
        self.first = self.number + 1

    def drop(self, unwanted: Callable[[Kind], bool]) -> int:
        """Forget kinds, and what is made of them; returns how many of them had rows."""
        gone: set[int] = set()
        dropped = 0
        for key, kind in list(self._kinds.items()):  # what goes in was seen before what is made of it
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
        """Forget what came once in two epochs. Whether rows were looked for, and none at all were found."""
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
    """What joins data to it that are new each time is not kept any more; what goes into it is."""
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
    """Their names."""
    return ", ".join(dict.fromkeys(f"'{kind.name}'" for kind in kinds))
