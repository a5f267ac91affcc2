"""The values of deferred results: from stored rows, from shared memory, or computed now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.conditions import under
from lightning_freeze.cache.functions import is_in_place
from lightning_freeze.cache.graph import Leaf, Node, Op
from lightning_freeze.cache.lazy import Lazy
from lightning_freeze.cache.lookups import Lookups
from lightning_freeze.cache.seal import version_of
from lightning_freeze.cache.shelf import Lookup, put_rows, rows_first
from lightning_freeze.cache.trees import flatten, rebuild
from lightning_freeze.errors import FreezeError

_Done = dict[tuple[int, int], Tensor]


class Work:
    """Computes and serves values in a step.

    Args:
        lookups: the lookups of rows.

    Attributes:
        inside: whether something is being computed; calls meanwhile are not intercepted.
        hits: number of rows that were served.
    """

    def __init__(self, lookups: Lookups) -> None:
        self.inside, self.hits = False, 0
        self._lookups = lookups
        self._of_some: dict[tuple[int, ...], _Done] = {}
        self._ops: list[Op] = []

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        """Do not intercept calls during a block."""
        inside, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = inside

    def value(self, lazy: Lazy) -> Tensor:
        """The values of a lazy tensor."""
        if lazy.held is None:
            with torch._C.DisableTorchFunctionSubclass():
                clean = lazy.node.clean
                lazy.held = self._served(lazy.node)
                lazy.node.version = version_of(lazy.held) if clean else -1
        return lazy.held

    # ---- shared memory of results

    def _served(self, node: Node) -> Tensor:
        """The values of a deferred result, in the memory that it shares with others."""
        root, others = node.root, [one for one in node.family() if one.memory() is not None]
        if node.above is not None:
            if (memory := root.memory()) is not None:
                return _view(node, memory)
            if not any(_overlap(node, other) for other in others):
                return self._rows_or_work(node)
        value = self._rows_or_work(root)
        for other in others:
            _rejoin(other, value)
        return value if root is node else _view(node, value)

    # ---- rows or computation

    def _rows_or_work(self, node: Node) -> Tensor:
        look = self._lookups.of(node)
        if look is None or (places := look.filling()) is None:
            return self._compute(node, None, {})
        filled = self._fill(node, look, places) if places else None
        with under(node.op.conditions):
            self.hits += len(look.known)
            return put_rows(node.facts, look.known, look.shelf.gather(look), look.missing, filled)

    def _fill(self, node: Node, look: Lookup, places: list[int]) -> Tensor:
        values = self.some(node, places)[: len(look.missing)]
        look.shelf.insert(look, look.missing, values, len(places))
        return values

    def some(self, node: Node, places: list[int]) -> Tensor:
        """Compute some rows of a result alone; the rows are in the first dimension."""
        key = tuple(places)
        return rows_first(self._compute(node, key, self._of_some.setdefault(key, {})), node.facts.rows_dim)

    def _compute(self, node: Node, some: tuple[int, ...] | None, done: _Done) -> Tensor:
        """Compute a deferred result for all rows or some of them.

        Raises:
            FreezeError: the weights have changed since the call.
        """
        op = node.op
        if (id(op), node.place) in done:
            return done[id(op), node.place]
        if some is not None and node.facts.rows_dim is None:
            raise FreezeError("FeatureCache: it has no rows")
        if not op.valid():
            raise FreezeError(
                f"FeatureCache: '{op.kind.name}' was changed within a step, after it was called, and a value of it is "
                "needed that earlier steps did not need.\n  Change it at the end of the step"
            )
        values = [self.given(one, some, done) for one in op.inputs]
        if is_in_place(op.function, {}):
            values[0] = values[0].clone()
        args, pairs = rebuild(op.spec, iter(values), op.rows if some is None else len(some))
        kwargs = dict(pairs)
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        with self.left_alone(), under(op.conditions):
            result = op.function(*args, **kwargs)
        results: list[Tensor] = []
        flatten(result, results, mutable=True)
        done.update({(id(op), place): one for place, one in enumerate(results)})
        self._ops.append(op)  # so that its id is not reused
        return results[node.place]

    def given(self, one: Any, some: tuple[int, ...] | None = None, done: _Done | None = None) -> Tensor:
        """The values of an input of an operation, or some rows of it."""
        if isinstance(one, Leaf):
            return one.value() if some is None else one.some(some)
        if isinstance(one, Tensor):
            return one if some is None else _narrowed(one, some)
        assert isinstance(one, Node)
        done = {} if done is None else done
        if some is not None:
            return self._compute(one, some, done)
        if (value := one.present()) is not None:
            return value
        lazy = one.alive()
        if isinstance(lazy, Lazy) and lazy.held is None and not one.family():
            return self.value(lazy)
        look = self._lookups.of(one)
        known = look is not None and not look.missing and look.usable()
        return self._rows_or_work(one) if known else self._compute(one, None, done)

    def clear(self) -> None:
        """Called at the end of the step."""
        self._of_some.clear()
        self._ops.clear()


def _view(node: Node, memory: Tensor) -> Tensor:
    """Make a view of the memory of its root."""
    facts = node.facts
    with under(node.op.conditions):
        offset = memory.storage_offset() + facts.offset - node.root.facts.offset
        return memory.as_strided(facts.shape, facts.stride, offset)


def _rejoin(other: Node, memory: Tensor) -> None:
    """Attach a view, handed out before its memory existed, to this memory, including later writes."""
    tensor = other.memory()
    if tensor is None:
        return
    if tensor.requires_grad:
        raise FreezeError(
            "FeatureCache: a view of a feature is trained, and the feature is used after that. Clone it first"
        )
    view, written = _view(other, memory), other.written
    if written:
        with torch.no_grad():
            view.copy_(tensor)
    torch._C._swap_tensor_impl(tensor, view)
    other.version = -1 if written else version_of(tensor)


def _overlap(one: Node, other: Node) -> bool:
    """Whether two views of one memory may overlap within a row, if their rows have the same stride."""
    if one.op is other.op:
        return False
    ranges = []
    for facts in (one.facts, other.facts):
        inner = [
            (size - 1) * step
            for dim, (size, step) in enumerate(zip(facts.shape, facts.stride, strict=True))
            if dim != facts.rows_dim
        ]
        stride = facts.stride[facts.rows_dim] if facts.rows_dim is not None else None
        ranges.append((stride, facts.offset, facts.offset + sum(inner)))
    (stride, start, stop), (other_stride, other_start, other_stop) = ranges
    apart = stride is not None and stride == other_stride and max(stop, other_stop) - min(start, other_start) < stride
    return not (apart and (stop < other_start or other_stop < start))


def _narrowed(constant: Tensor, some: tuple[int, ...]) -> Tensor:
    """Narrow a constant that was repeated for each row to some rows."""
    if constant.dim() and constant.stride(0) == 0 and constant.shape[0] > 1:
        return constant[:1].expand(len(some), *constant.shape[1:])
    return constant
