"""What the cache knows over all steps: kinds of operations, their rows, and the tensors that never change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.graph import Facts, Kind
from lightning_freeze.cache.row_store import Storage
from lightning_freeze.cache.seal import version_of
from lightning_freeze.cache.shelf import FRUITLESS, Shelf


class Library:
    """Kinds and shelves.

    Args:
        storage: where rows are kept, and how many.
        verify: compare stored rows with computed ones before they are used.
        warn: is told what is not kept, and why.
    """

    def __init__(self, storage: Storage, verify: bool, warn: Callable[[str], None]) -> None:
        self.storage, self.verify, self.warn = storage, verify, warn
        self.number = 0  # of the step
        self.first = 1  # the first after all was forgotten
        self.began_with_rows = False  # the epoch
        self._kinds: dict[Hashable, Kind] = {}
        self._constants: dict[int, Tensor] = {}
        self._batches = 0
        self._epoch = 0  # the last step of the epoch before
        self._full = False

    def fix(self, tensors: Iterable[Tensor]) -> None:
        """The parameters and buffers that do not train: they, and views of them, are no data."""
        strided = [tensor for tensor in tensors if tensor.layout == torch.strided and tensor.numel()]
        self._constants = {tensor.untyped_storage().data_ptr(): tensor for tensor in strided}

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
        return "constant", id(base), version_of(base), shape, place

    def kind(self, key: Hashable, name: str, token: int, before: tuple[Kind, ...]) -> Kind:
        """The kind with this key."""
        found = self._kinds.get(key)
        if found is None:
            found = self._kinds[key] = Kind(name, self.number, token, before)
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
            store = self.storage.open(shape, facts.dtype)
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
        kind.shelves[place] = Shelf(kind.name, store, self.verify, self._next_batch)
        return kind.shelves[place]

    def _next_batch(self) -> int:
        self._batches += 1
        return self._batches * self.storage.ranks + self.storage.rank

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


def describe(kinds: Iterable[Any]) -> str:
    """Their names."""
    return ", ".join(dict.fromkeys(f"'{kind.name}'" for kind in kinds))
