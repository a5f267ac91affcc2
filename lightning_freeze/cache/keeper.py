"""Store the results whose values a step needs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_freeze.cache.graph import Node
from lightning_freeze.cache.library import Library
from lightning_freeze.cache.lookups import Lookups
from lightning_freeze.cache.shelf import Lookup, rows_first
from lightning_freeze.cache.work import Work


class Keeper:
    """Stores rows of results, and compares them with rows that are already stored."""

    def __init__(self, library: Library, lookups: Lookups, work: Work, trains: bool) -> None:
        self._library, self._lookups, self._work, self._trains = library, lookups, work, trains
        self._seen: set[Any] = set()

    def keep(self, node: Node) -> None:
        """Store a result whose values are needed."""
        kind, at = node.op.kind, (node.op.kind, node.place, node.op.leaves)
        value = node.present()
        if value is None or kind.barred or at in self._seen or self._library.is_fresh(kind):
            return
        self._seen.add(at)
        shelf = kind.shelves.get(node.place)
        if shelf is None and self._trains:
            shelf = self._library.shelf(kind, node.place, node.facts)
        if shelf is None or shelf.wrong:
            return
        _mark(node)
        look = self._lookups.of(node, anew=True)
        if look is None or (look.usable() and not look.missing):
            return
        rows = rows_first(value, node.facts.rows_dim)
        self._try_fewer(node, look, rows)
        shelf.learn(look, rows)

    def _try_fewer(self, node: Node, look: Lookup, rows: Tensor) -> None:
        """Compute the missing rows alone, if a smaller batch may give the same bits as the whole one."""
        if not look.missing or not look.usable() or (few := look.fewer()) is None:
            return
        if look.shelf.index.same(few, len(look.keys)):
            return
        values: Tensor | None
        try:
            values = self._work.some(node, look.filled(few))[: len(look.missing)]
        except Exception:  # a function that depends on the batch size
            values = None
        look.shelf.tried(look, few, values, rows[look.missing])


def _mark(node: Node) -> None:
    """Mark a result as needed in all kinds that it depends on."""
    at, pending = (node.op.kind, node.place), [node.op]
    if at in node.op.kind.targets:
        return
    seen: set[int] = set()
    while pending:
        op = pending.pop()
        if id(op) not in seen:
            seen.add(id(op))
            covered = set(node.op.leaves) <= set(op.leaves)
            op.kind.targets[at] = tuple(op.leaves.index(leaf) for leaf in node.op.leaves) if covered else None
            pending.extend(one.op for one in op.nodes)
