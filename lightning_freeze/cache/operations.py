"""Turn calls in a step into operations, with their kinds and inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.conditions import conditions
from lightning_freeze.cache.functions import RULES, Given, is_in_place
from lightning_freeze.cache.graph import Leaf, Node, Op
from lightning_freeze.cache.lazy import Lazy
from lightning_freeze.cache.library import Library
from lightning_freeze.cache.parts import Part
from lightning_freeze.cache.seal import version_of
from lightning_freeze.cache.trees import Unknown, flatten

_Input = Node | Leaf | tuple[Tensor, Hashable]


class Operations:
    """Makes the operations of one step.

    Args:
        step: the step whose lazy tensors may be inputs.
        library: kinds and constants.
        batch: number of rows of the batch; None: unknown.
    """

    def __init__(self, step: Any, library: Library, batch: int | None) -> None:
        self._step, self._library, self._batch = step, library, batch
        self._leaves: dict[int, Leaf] = {}

    def of_module(self, part: Part, forward: Any, spec: Any, tensors: Sequence[Tensor], token: int) -> Op | None:
        """The operation for a call of a module in the state with this token; None if it cannot be deferred."""
        inputs = [self._input(tensor, 0) or self._leaf(tensor) for tensor in tensors]
        grad = torch.is_grad_enabled() if part.looks else None
        target = part, token, grad
        return self._made(target, part.name, forward, spec, inputs, token, lambda: part.check() == token)

    def of_function(self, func: Any, args: Any, kwargs: Any, lazy: Lazy) -> Op | None:
        """The operation for a call of a function; None if it cannot be deferred."""
        tensors: list[Tensor] = []
        rule, rows, name = RULES.get(func), lazy.node.op.rows, lazy.node.op.kind.name
        if rule is None or (is_in_place(func, kwargs) and (not isinstance(args[0], Lazy) or args[0].node.family())):
            return None
        try:
            spec = flatten((args, tuple(kwargs.items())), tensors, rows, mutable=True)
        except Unknown:
            return None
        inputs = [self._input(tensor, rows) for tensor in tensors]
        op = self._made(func, name, func, spec, inputs, 0, _same_versions(tensors))
        if op is None or op.rows != rows:
            return None
        if rows not in op.kind.rows_dims:
            places = {id(one): one.node.facts.rows_dim for one in tensors if isinstance(one, Lazy)}
            fits = None not in places.values()
            op.kind.rows_dims[rows] = rule(Given(places, rows), args, kwargs) if fits else None
        return op if op.kind.rows_dims[rows] is not None else None

    def _input(self, tensor: Tensor, rows: int) -> _Input | None:
        """An input: an unwritten result, or a constant."""
        if isinstance(tensor, Lazy):
            mine = tensor.step is self._step and tensor.node is not None and tensor.node.clean
            return tensor.node if mine else None
        constant = None if tensor.requires_grad else self._library.constant(tensor, rows)
        return None if constant is None else (tensor, constant)

    def _leaf(self, tensor: Tensor) -> Leaf | None:
        found, unseen = self._leaves.get(id(tensor)), tensor.is_inference()  # torch does not count writes into it
        same = found is not None and found.tensor is tensor and version_of(tensor) == found.version
        if same and not unseen:
            return found
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.requires_grad
        if not plain or tensor.is_meta or not tensor.numel():
            return None
        leaf = Leaf(tensor, self._batch)
        if unseen and len(leaf.keys) and same and found is not None and torch.equal(leaf.keys, found.keys):
            return found
        self._leaves[id(tensor)] = leaf
        return leaf

    def _made(
        self, target: Any, name: str, function: Any, spec: Any, inputs: list[Any], token: int, valid: Any
    ) -> Op | None:
        """The operation with its kind; None if its arguments cannot be stored or have different rows."""
        if any(one is None for one in inputs):
            return None
        leaves: dict[Leaf, int] = {}
        for one in inputs:
            for leaf in one.op.leaves if isinstance(one, Node) else (one,) if isinstance(one, Leaf) else ():
                leaves.setdefault(leaf, len(leaves))
        counts = {leaf.rows for leaf in leaves if leaf.rows_dim is not None}
        if len(counts) > 1 or not leaves:
            return None
        now, firsts = conditions(), dict[int, int]()
        same = tuple(firsts.setdefault(id(one), place) for place, one in enumerate(inputs))
        before = tuple(one.op.kind for one in inputs if isinstance(one, Node))
        key = target, spec, tuple(_described(one, leaves) for one in inputs), same, now[2:]
        kind = self._library.kind(key, name, token, before)
        kind.joins = bool(before) and any(isinstance(one, Leaf) for one in inputs)
        plain = [one[0] if isinstance(one, tuple) else one for one in inputs]
        return Op(kind, function, spec, plain, tuple(leaves), counts.pop() if counts else 1, now, valid)

    def clear(self) -> None:
        """Called at the end of the step."""
        self._leaves.clear()


def _described(one: _Input, leaves: dict[Leaf, int]) -> Hashable:
    """The properties that inputs of one kind have in common."""
    if isinstance(one, Node):
        return one.op.kind, one.place, tuple(leaves[leaf] for leaf in one.op.leaves)
    return one.describe(leaves[one]) if isinstance(one, Leaf) else one[1]


def _same_versions(tensors: Sequence[Tensor]) -> Callable[[], bool]:
    versions = [(one, version_of(one)) for one in tensors if not isinstance(one, Lazy)]
    return lambda: all(version_of(one) == version for one, version in versions)
