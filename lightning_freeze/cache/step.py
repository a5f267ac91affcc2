"""One step: calls of frozen modules, and functions of their results, are computed at once or deferred.

They are deferred if the rows of all results that earlier steps needed are known. If a value is needed later, it comes
from the rows or is computed then. So a step runs once and in its own order, whatever it does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.conditions import unusual
from lightning_freeze.cache.functions import is_in_place
from lightning_freeze.cache.graph import Facts, Node, Op
from lightning_freeze.cache.keeper import Keeper
from lightning_freeze.cache.lazy import Lazy, become, lazies, make_lazy, plain
from lightning_freeze.cache.library import Library
from lightning_freeze.cache.lookups import Lookups
from lightning_freeze.cache.observation import observe
from lightning_freeze.cache.operations import Operations
from lightning_freeze.cache.parts import Part
from lightning_freeze.cache.results import facts_of
from lightning_freeze.cache.seal import version_of
from lightning_freeze.cache.trees import Unknown, flatten, rebuild
from lightning_freeze.cache.work import Work


class Step:
    """One step, while it runs.

    Args:
        library: the state across steps.
        batch: number of rows of the batch; None: unknown.
        trains: whether it is a training step; other steps store only rows of results that training has needed.

    Attributes:
        lookups: the lookups of rows.
        work: computes values.
    """

    def __init__(self, library: Library, batch: int | None, trains: bool = True) -> None:
        self.lookups = Lookups(trains)
        self.work = Work(self.lookups)
        self._active = True
        self._library = library
        self._operations = Operations(self, library, batch)
        self._keeper = Keeper(library, self.lookups, self.work, trains)
        self._made: list[weakref.ref[Tensor]] = []
        self._views: list[Node] = []

    @property
    def _watches(self) -> bool:
        return self._active and not self.work.inside and not unusual()

    # ---- calls

    def call(self, part: Part, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Handle a call of a frozen module."""
        if part.whole is False or not self._watches:
            return original(*args, **kwargs)
        tensors: list[Tensor] = []
        try:
            spec = flatten((args, tuple(kwargs.items())), tensors)
        except Unknown:  # opaque or writable arguments: its Python code runs in every step
            if part.whole is None:
                part.judge("is given objects or lists", final=True)
            self.realize(args, kwargs)
            return original(*args, **kwargs)
        if torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
            return original(*args, **kwargs)
        token = part.check()
        with torch._C.DisableTorchFunctionSubclass():
            op = self._operations.of_module(part, original, spec, tensors, token) if token else None
        if op is None or op.kind.barred:
            self.realize(args, kwargs)
            return original(*args, **kwargs)
        return self._observed(part, original, op) if part.whole is None else self._do(op)

    def _observed(self, part: Part, original: Callable[..., Any], op: Op) -> Any:
        """Run and observe the first call."""
        values = [self.work.given(one) for one in op.inputs]

        def call(probes: list[Tensor]) -> Any:
            args, pairs = rebuild(op.spec, iter(probes))
            return original(*args, **dict(pairs))

        with self.work.left_alone():
            result, seen = observe(part.module, values, call)
        part.judge(seen.flaw, seen.final)
        part.looks = part.looks or seen.looks
        part.codes, part.depends = seen.codes, seen.depends
        return result if seen.flaw or seen.looks else self._with_facts(op, values, result, None)

    def meet(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Handle a call of a function with lazy arguments."""
        found = lazies((args, kwargs))
        if any(lazy.node is None for lazy in found):
            return func(*plain(args), **plain(kwargs))
        op = None
        if self._watches:
            with torch._C.DisableTorchFunctionSubclass():
                op = self._operations.of_function(func, args, kwargs, found[0])
        if op is None or op.kind.barred:
            self.realize(args, kwargs)
            return func(*args, **kwargs)
        return self._do(op, in_place=args[0] if is_in_place(func, kwargs) else None)

    # ---- computed or deferred

    def _do(self, op: Op, in_place: Lazy | None = None) -> Any:
        known = op.kind.facts.get(op.rows)
        fresh = self._library.is_fresh(op.kind)
        if fresh:
            for node in op.nodes:
                self._keeper.keep(node)
        elif known is not None and self.lookups.can_wait(op):
            return self._handed_out(op, known[0], [None] * len(known[0]), in_place)
        values = [self.work.given(one) for one in op.inputs]
        args, pairs = rebuild(op.spec, iter(values), op.rows)
        with self.work.left_alone():
            result = op.function(*args, **dict(pairs))
        return self._with_facts(op, values, result, in_place)

    def _with_facts(self, op: Op, values: list[Tensor], result: Any, in_place: Lazy | None) -> Any:
        """Wrap a computed result in lazy tensors, if it has the same form as in other steps."""
        results: list[Tensor] = []
        try:
            spec = flatten(result, results, mutable=True)
        except Unknown:
            op.kind.barred = True
            return result
        with torch._C.DisableTorchFunctionSubclass():
            facts = facts_of(op, values, results)
        recorded = op.kind.facts.setdefault(op.rows, (facts, spec)) if facts is not None else None
        if facts is not None and recorded == (facts, spec):
            return self._handed_out(op, facts, results, in_place)
        op.kind.barred = True
        if in_place is None:
            return result
        become(in_place, results[0])
        return in_place

    def _handed_out(
        self, op: Op, facts: Sequence[Facts], values: Sequence[Tensor | None], in_place: Lazy | None
    ) -> Any:
        nodes = [self._node(op, place, one, values[place]) for place, one in enumerate(facts)]
        if in_place is not None:
            in_place.node.reference = None
            in_place.node, in_place.held, nodes[0].reference = nodes[0], values[0], weakref.ref(in_place)
            return in_place
        made: list[Any] = []
        for node, value in zip(nodes, values, strict=True):
            if node.facts.same is not None:
                given = op.inputs[node.facts.same]
                assert isinstance(given, Node)
                made.append(given.alive())
                continue
            lazy = make_lazy(node.facts, node, value, self)
            node.reference = weakref.ref(lazy)
            self._made.append(node.reference)
            made.append(lazy)
        return rebuild(op.kind.facts[op.rows][1], iter(made), op.rows)

    def _node(self, op: Op, place: int, facts: Facts, value: Tensor | None) -> Node:
        given = op.inputs[facts.view] if facts.view is not None and facts.same is None else None
        node = Node(op, place, given.root if isinstance(given, Node) else None)
        if node.above is not None:
            self._views.append(node)
        if value is not None:
            node.version = version_of(value)
        return node

    # ---- values

    def realize(self, *trees: Any) -> None:
        """Turn the lazy tensors in arguments into plain ones, because their values are needed."""
        for lazy in lazies(trees):
            if lazy.__class__ is Lazy and lazy.node is not None:
                lazy.step.make_real(lazy)

    def make_real(self, lazy: Lazy) -> None:
        """Turn a lazy tensor into a plain one."""
        node = lazy.node
        with torch._C.DisableTorchFunctionSubclass():
            clean = self._active and node.clean
            value = self.value(lazy)
            if clean:
                self._keeper.keep(node)
            become(lazy, value)

    def value(self, lazy: Lazy) -> Tensor:
        """The values of a lazy tensor."""
        return self.work.value(lazy)

    def finish(self) -> None:
        """Give tensors that outlive the step their values."""
        for reference in self._made:
            lazy = reference()
            if isinstance(lazy, Lazy) and lazy.node is not None:
                self.make_real(lazy)
        self._active = False
        for used in (self._operations, self.lookups, self.work):
            used.clear()
        self._views.clear()
