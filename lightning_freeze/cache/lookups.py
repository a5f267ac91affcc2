"""Look up the rows of results, once each in a step, and decide whether operations can be deferred."""

from __future__ import annotations

from typing import Any

from lightning_freeze.cache.graph import Kind, Leaf, Node, Op
from lightning_freeze.cache.row_keys import row_keys
from lightning_freeze.cache.row_store import Key
from lightning_freeze.cache.shelf import Lookup


class Lookups:
    """The lookups of a step.

    Attributes:
        rows, found: numbers of rows that were looked up and found.
    """

    def __init__(self, counted: bool = True) -> None:
        self.rows = self.found = 0
        self._found: dict[Any, Lookup | None] = {}
        self._counted = counted
        self._keys: dict[Any, list[Key]] = {}

    def look(self, kind: Kind, place: int, leaves: tuple[Leaf, ...], op: Op) -> Lookup | None:
        """Look up the rows of a result of an operation, or of a result that depends on it."""
        key = kind, place, leaves
        if key not in self._found:
            shelf, known = kind.shelves.get(place), kind.facts.get(op.rows)
            self._found[key] = None
            if shelf is not None and known is not None and all(leaf.has_keys for leaf in leaves):
                whole = known[0][place].rows_dim is None
                size, mode = 1 if whole else op.rows, op.conditions[0] + 2 * op.conditions[1]
                look = self._found[key] = shelf.look(size, self._keys_of(leaves, size, whole), mode, self._counted)
                self.rows, self.found = self.rows + size, self.found + len(look.known)
        return self._found[key]

    def of(self, node: Node, anew: bool = False) -> Lookup | None:
        """Look up the rows of a result; `anew`: again, because there may be room for them now."""
        at = node.op.kind, node.place, node.op.leaves
        if anew and self._found.get(at) is None:
            self._found.pop(at, None)
        return self.look(*at, node.op)

    def _keys_of(self, leaves: tuple[Leaf, ...], rows: int, whole: bool) -> list[Key]:
        key = leaves, whole
        if key not in self._keys:
            keys = leaves[0].keys
            if len(leaves) > 1:
                keys = row_keys([leaf.keys for leaf in leaves], max(leaf.rows for leaf in leaves))
            keys = row_keys([keys.unsqueeze(0)], 1) if whole and len(keys) > 1 else keys
            self._keys[key] = [(one, other) for one, other in keys.tolist()]
        return self._keys[key]

    def can_wait(self, op: Op) -> bool:
        """Whether an operation can be deferred, because rows of all needed results are known."""
        perhaps = False
        for (kind, place), at in op.kind.targets.items():
            shelf = kind.shelves.get(place)
            if shelf is None or shelf.wrong:
                continue
            if at is None:  # it depends on more than is known so far
                perhaps = perhaps or bool(shelf.store.bytes)
                continue
            look = self.look(kind, place, tuple(op.leaves[k] for k in at), op)
            if look is not None and (places := look.filling()) is not None:
                for leaf in op.leaves:
                    leaf.secure(places)
                return True
        if perhaps:
            for leaf in op.leaves:
                leaf.secure()
        return perhaps

    def clear(self) -> None:
        """Called at the end of the step."""
        self._found.clear()
        self._keys.clear()
