"""One step: calls of frozen modules and functions of what they return are computed at once, or put off.

They are put off where rows of what has been needed of them in earlier steps are known. Whatever needs a value gets
it: from the rows, or by work that is done then. So a step runs once, in the order it is written in, whatever it does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from lightning_freeze.cache.functions import RULES, Given, is_in_place
from lightning_freeze.cache.graph import Facts, Leaf, Node, Op, conditions, under
from lightning_freeze.cache.lazy import Lazy, become, lazies, make_lazy, plain
from lightning_freeze.cache.library import Library
from lightning_freeze.cache.observation import observe
from lightning_freeze.cache.parts import Part
from lightning_freeze.cache.row_keys import row_keys
from lightning_freeze.cache.seal import version_of
from lightning_freeze.cache.shelf import Lookup, Shelf, put_rows, rows_first
from lightning_freeze.cache.trees import Unknown, flatten, rebuild
from lightning_freeze.errors import FreezeError

_EXEMPT = (DeviceContext,)
_Found = tuple[Lookup, Shelf]


def unusual() -> bool:
    """Whether something in torch watches or transforms what runs: it has to see all of it."""
    if torch._C._functorch.maybe_current_level() is not None or torch._C._len_torch_dispatch_stack():
        return True
    if size := torch._C._len_torch_function_stack():
        modes = [torch._C._get_function_stack_at(place) for place in range(size)]
        if not all(isinstance(mode, _EXEMPT) for mode in modes):
            return True
    hooks = nn.modules.module
    return (
        bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
        or torch._C._get_tracing_state() is not None
    )


class Step:
    """One step, while it runs.

    Args:
        library: what is known from other steps.
        batch: rows of the batch; None: unknown.
    """

    def __init__(self, library: Library, batch: int | None) -> None:
        self.library, self.batch, self.number = library, batch, library.number
        self.active = True
        self.rows = self.hits = 0
        self._inside = False
        self._leaves: dict[int, Leaf] = {}
        self._looks: dict[Any, _Found | None] = {}
        self._stored: set[Any] = set()
        self._keys: dict[Any, Any] = {}
        self._made: list[weakref.ref[Tensor]] = []
        self._parts: dict[tuple[int, ...], dict[Any, Tensor]] = {}
        self._working: list[Op] = []
        self._views: list[Node] = []

    # ---- modules

    def call(self, part: Part, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A frozen module is called."""
        if self._inside or not self.active or unusual():
            return original(*args, **kwargs)
        if part.whole is False:
            return original(*args, **kwargs)
        tensors: list[Tensor] = []
        try:
            spec = flatten((args, tuple(kwargs.items())), tensors)
        except Unknown:
            return self._aside(part, original, args, kwargs)
        if torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
            return original(*args, **kwargs)
        token = part.check()
        with torch._C.DisableTorchFunctionSubclass():
            op = self._op(part, original, spec, tensors, token) if token else None
        if op is None or op.kind.barred:
            self.realize(args, kwargs)
            return original(*args, **kwargs)
        if part.whole is None:
            return self._observed(part, original, op)
        return self._do(op)

    def _aside(self, part: Part, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """It is given something that nobody can look into, or that it may write into: its Python runs in every step."""
        if part.whole is None:
            part.judge("is given objects or lists", final=True)
        self.realize(args, kwargs)
        return original(*args, **kwargs)

    def _op(self, part: Part, original: Any, spec: Any, tensors: Sequence[Tensor], token: int) -> Op | None:
        inputs: list[Any] = []
        for tensor in tensors:
            if isinstance(tensor, Lazy):
                inputs.append(tensor.node if self._is_clean(tensor) else None)
            elif (constant := self.library.constant(tensor, 0)) is not None:
                inputs.append((tensor, constant))
            else:
                inputs.append(self._leaf(tensor))
        if any(one is None for one in inputs):
            return None
        grad = torch.is_grad_enabled() if part.looks else None
        return self._made_op(
            (part, token, grad), part.name, original, spec, inputs, token, lambda: part.check() == token
        )

    def _is_clean(self, lazy: Lazy) -> bool:
        """Whether nobody has written into it."""
        node = lazy.node
        return (
            lazy.step is self
            and node is not None
            and not node.written
            and not any(one.written for one in node.family())
        )

    def _leaf(self, tensor: Tensor) -> Leaf | None:
        found = self._leaves.get(id(tensor))
        if found is not None and found.tensor is tensor and version_of(tensor) == found.version:
            return found
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.requires_grad
        if not plain or tensor.is_inference() or tensor.is_meta or not tensor.numel():
            return None
        self._leaves[id(tensor)] = Leaf(tensor, self.batch)
        return self._leaves[id(tensor)]

    def _made_op(
        self, target: Any, name: str, function: Any, spec: Any, inputs: list[Any], token: int, valid: Any
    ) -> Op | None:
        """The operation, with its kind; None: its arguments do not have the same rows."""
        leaves: dict[Leaf, int] = {}
        for one in inputs:
            for leaf in one.op.leaves if isinstance(one, Node) else (one,) if isinstance(one, Leaf) else ():
                leaves.setdefault(leaf, len(leaves))
        counts = {leaf.rows for leaf in leaves if leaf.rows_dim is not None}
        if len(counts) > 1 or not leaves:
            return None
        described: list[Any] = []
        before, joins = [], False
        for one in inputs:
            if isinstance(one, Node):
                described.append((one.op.kind, one.place, tuple(leaves[leaf] for leaf in one.op.leaves)))
                before.append(one.op.kind)
            elif isinstance(one, Leaf):
                described.append(one.describe(leaves[one]))
                joins = True
            else:
                described.append(one[1])
        now = conditions()
        firsts: dict[int, int] = {}
        same = tuple(firsts.setdefault(id(one), place) for place, one in enumerate(inputs))
        key = target, spec, tuple(described), same, now[2:]
        kind = self.library.kind(key, name, token, tuple(before))
        kind.joins = joins and bool(before)
        plain = [one[0] if isinstance(one, tuple) else one for one in inputs]
        return Op(kind, function, spec, plain, tuple(leaves), counts.pop() if counts else 1, now, valid)

    def _observed(self, part: Part, original: Callable[..., Any], op: Op) -> Any:
        """The first call: it is run as a whole, and watched."""
        values = [self._value_of(one) for one in op.inputs]

        def call(probes: list[Tensor]) -> Any:
            args, pairs = rebuild(op.spec, iter(probes))
            return original(*args, **dict(pairs))

        with self._left_alone():
            result, seen = observe(part.module, values, call)
        part.judge(seen.flaw, seen.final)
        part.looks = part.looks or seen.looks
        part.depends = seen.depends
        return result if seen.flaw or seen.looks else self._kept(op, values, result, None)

    # ---- functions

    def meet(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A function is called of something lazy."""
        found = lazies((args, kwargs))
        if any(lazy.node is None for lazy in found):
            return func(*plain(args), **plain(kwargs))
        op = None
        if self.active and not self._inside and (rule := RULES.get(func)) is not None and not unusual():
            with torch._C.DisableTorchFunctionSubclass():
                op = self._function(func, rule, args, kwargs, found)
        if op is None or op.kind.barred:
            self.realize(args, kwargs)
            return func(*args, **kwargs)
        return self._do(op, in_place=args[0] if is_in_place(func, kwargs) else None)

    def _function(self, func: Any, rule: Any, args: Any, kwargs: Any, found: list[Lazy]) -> Op | None:
        tensors: list[Tensor] = []
        if not all(self._is_clean(lazy) for lazy in found):
            return None
        rows = found[0].node.op.rows
        try:
            spec = flatten((args, tuple(kwargs.items())), tensors, rows, mutable=True)
        except Unknown:
            return None
        inputs: list[Any] = []
        for tensor in tensors:
            if isinstance(tensor, Lazy):
                inputs.append(tensor.node)
            elif (constant := self.library.constant(tensor, rows)) is None or tensor.requires_grad:
                return None
            else:
                inputs.append((tensor, constant))
        if is_in_place(func, kwargs) and (not isinstance(args[0], Lazy) or args[0].node.family()):
            return None
        name = found[0].node.op.kind.name
        op = self._made_op(func, name, func, spec, inputs, 0, _same_versions(tensors))
        if op is None or op.rows != rows:
            return None
        if rows not in op.kind.rows_dims:
            places = {id(lazy): lazy.node.facts.rows_dim for lazy in found}
            fits = None not in places.values()
            op.kind.rows_dims[rows] = rule(Given(places, rows), args, kwargs) if fits else None
        return op if op.kind.rows_dims[rows] is not None else None

    # ---- both

    def _do(self, op: Op, in_place: Lazy | None = None) -> Any:
        known = op.kind.facts.get(op.rows)
        fresh = self._is_fresh(op.kind)
        if fresh:
            for node in op.nodes:
                self._store(node)
        if known is not None and not fresh and self._put_off(op):
            nodes = [self._node(op, place, one) for place, one in enumerate(known[0])]
            return self._handed_out(op, nodes, [None] * len(nodes), in_place)
        return self._done(op, in_place)

    def _is_fresh(self, kind: Any) -> bool:
        """Whether it may be one that comes once: it is new, and others are not."""
        return bool(kind.born == self.number > self.library.first)

    def _done(self, op: Op, in_place: Lazy | None) -> Any:
        values = [self._value_of(one) for one in op.inputs]
        args, pairs = rebuild(op.spec, iter(values), op.rows)
        with self._left_alone():
            result = op.function(*args, **dict(pairs))
        return self._kept(op, values, result, in_place)

    def _kept(self, op: Op, values: list[Tensor], result: Any, in_place: Lazy | None) -> Any:
        """What was computed, with its provenance."""
        results: list[Tensor] = []
        try:
            spec = flatten(result, results, mutable=True)
        except Unknown:
            op.kind.barred = True
            return result
        with torch._C.DisableTorchFunctionSubclass():
            facts = self._facts(op, values, results)
        recorded = op.kind.facts.setdefault(op.rows, (facts, spec)) if facts is not None else None
        if recorded is None or recorded != (facts, spec):
            op.kind.barred = True
            if in_place is not None:
                become(in_place, results[0])
            return result if in_place is None else in_place
        nodes = [self._node(op, place, one) for place, one in enumerate(recorded[0])]
        for node, value in zip(nodes, results, strict=True):
            node.version = version_of(value)
        return self._handed_out(op, nodes, results, in_place)

    def _handed_out(self, op: Op, nodes: list[Node], values: Sequence[Tensor | None], in_place: Lazy | None) -> Any:
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

    def _node(self, op: Op, place: int, facts: Facts) -> Node:
        given = op.inputs[facts.view] if facts.view is not None and facts.same is None else None
        if not isinstance(given, Node):
            return Node(op, place)
        self._views.append(Node(op, place, given.root))
        return self._views[-1]

    def _facts(self, op: Op, values: list[Tensor], results: list[Tensor]) -> list[Facts] | None:
        """What is known of results; None: they cannot be kept."""
        if len({id(one) for one in results}) < len(results):
            return None
        memory = {one.untyped_storage().data_ptr(): place for place, one in reversed([*enumerate(values)])}
        found = []
        for result in results:
            if type(result) is not Tensor or result.requires_grad or result.layout != torch.strided:
                return None
            if any(step == 0 and size > 1 for step, size in zip(result.stride(), result.shape, strict=True)):
                return None
            view = memory.get(result.untyped_storage().data_ptr()) if result.numel() else None
            if view is not None and not isinstance(op.inputs[view], Node):
                return None
            same = next((place for place, value in enumerate(values) if value is result), None)
            dim = self._rows_dim(op, result)
            if dim is None and op.kind.rows_dims:
                return None
            shape, stride = tuple(result.shape), tuple(result.stride())
            found.append(
                Facts(shape, stride, result.dtype, result.device, dim, view, same, int(result.storage_offset()))
            )
        return found

    def _rows_dim(self, op: Op, result: Tensor) -> int | None:
        if (dim := op.kind.rows_dims.get(op.rows)) is not None:
            return dim if result.dim() > dim and result.shape[dim] == op.rows else None
        if all(leaf.rows_dim is None for leaf in op.leaves):
            return None
        return next((dim for dim in (0, 1) if result.dim() > dim and result.shape[dim] == op.rows), None)

    # ---- put off, or not

    def _put_off(self, op: Op) -> bool:
        """Whether rows of what has been needed of it are known."""
        perhaps = False
        for (kind, place), at in op.kind.targets.items():
            shelf = kind.shelves.get(place)
            if shelf is None or shelf.wrong:
                continue
            if at is None:  # it hangs on more than is known by now
                perhaps = perhaps or bool(shelf.store.bytes)
                continue
            found = self._look(kind, place, tuple(op.leaves[k] for k in at), op.rows)
            if found is not None and shelf.usable(found[0]):
                places = self._places(found)
                if places is not None:
                    for leaf in op.leaves:
                        leaf.secure(places)
                    return True
        if perhaps:
            for leaf in op.leaves:
                leaf.secure()
        return perhaps

    def _places(self, found: _Found) -> list[int] | None:
        """The missing rows, filled up to a batch that is known to give the same bits; None: there is no such batch."""
        look, shelf = found
        if not look.missing:
            return []
        few = shelf.fewer(look)
        if few is None or not shelf.index.same(few, len(look.keys)):
            return None
        return [*look.missing, *look.missing[-1:] * (few - len(look.missing))]

    def _look(self, kind: Any, place: int, leaves: tuple[Leaf, ...], rows: int) -> _Found | None:
        """What is known of a result's rows, looked up once in a step."""
        key = kind, place, leaves
        if key not in self._looks:
            shelf, known = kind.shelves.get(place), kind.facts.get(rows)
            self._looks[key] = None
            if shelf is not None and known is not None:
                whole = known[0][place].rows_dim is None
                size = 1 if whole else rows
                self._looks[key] = shelf.look(size, self._keys_of(leaves, size, whole)), shelf
                self.rows += size
        return self._looks[key]

    def _keys_of(self, leaves: tuple[Leaf, ...], rows: int, whole: bool) -> list[tuple[int, int]]:
        key = leaves, whole
        if key not in self._keys:
            keys = (
                leaves[0].keys
                if len(leaves) == 1
                else row_keys([leaf.keys for leaf in leaves], max(leaf.rows for leaf in leaves))
            )
            keys = row_keys([keys.unsqueeze(0)], 1) if whole and len(keys) > 1 else keys
            self._keys[key] = [(one, other) for one, other in keys.tolist()]
        found: list[tuple[int, int]] = self._keys[key]
        return found

    # ---- values

    def realize(self, *trees: Any) -> None:
        """Somebody needs the values: the lazy tensors in these become plain ones."""
        for lazy in lazies(trees):
            if lazy.__class__ is Lazy and lazy.node is not None:
                lazy.step.make_real(lazy)

    def make_real(self, lazy: Lazy) -> None:
        """Turn a lazy tensor into a plain one."""
        node = lazy.node
        with torch._C.DisableTorchFunctionSubclass():
            clean = self.active and self._is_clean(lazy)
            value = self.value(lazy)
            if clean:
                self._store(node)
            become(lazy, value)

    def value(self, lazy: Lazy) -> Tensor:
        """Its values."""
        if lazy.held is None:
            with torch._C.DisableTorchFunctionSubclass():
                clean = self._is_clean(lazy)
                lazy.held = self._served(lazy.node)
                lazy.node.version = version_of(lazy.held) if clean else -1
        return lazy.held

    def _served(self, node: Node) -> Tensor:
        """The values of something put off, in the memory that it shares with others."""
        others = [one for one in node.family() if one.memory() is not None]
        if node.above is None:
            value = self._rows_or_work(node)
            for other in others:
                self._rejoin(other, value)
            return value
        if node.root.memory() is None and not any(_overlap(node, other) for other in others):
            return self._rows_or_work(node)
        if (root := node.root).memory() is not None:
            return self._view(node, root, root.memory())
        value = self._rows_or_work(root)
        for other in others:
            self._rejoin(other, value)
        return self._view(node, root, value)

    def _view(self, node: Node, root: Node, memory: Tensor | None) -> Tensor:
        """A view of the memory of its root."""
        assert memory is not None
        facts = node.facts
        with under(node.op.conditions):
            return memory.as_strided(
                facts.shape, facts.stride, memory.storage_offset() + facts.offset - root.facts.offset
            )

    def _rejoin(self, other: Node, memory: Tensor) -> None:
        """A view was handed out before the memory that it is of was there: now it is of it, with what was written."""
        tensor = other.memory()
        if tensor is None:
            return
        if tensor.requires_grad:
            raise FreezeError(
                "FeatureCache: a view of a feature is trained, and the feature is used after that. Clone it first"
            )
        view = self._view(other, other.root, memory)
        if other.written:
            with torch.no_grad():
                view.copy_(tensor)
        torch._C._swap_tensor_impl(tensor, view)
        if not other.written:
            other.version = version_of(tensor)

    def _rows_or_work(self, node: Node) -> Tensor:
        found = self._look(node.op.kind, node.place, node.op.leaves, node.op.rows)
        if found is not None and found[1].usable(found[0]) and (places := self._places(found)) is not None:
            look, shelf = found
            filled = self._fill(node, look, shelf, places) if places else None
            with under(node.op.conditions):
                self.hits += len(look.known)
                return put_rows(node.facts, look.known, shelf.gather(look), look.missing, filled)
        return self._work(node, None, {})

    def _fill(self, node: Node, look: Lookup, shelf: Shelf, places: list[int]) -> Tensor:
        values = rows_first(self._work(node, tuple(places), self._part(tuple(places))), node.facts.rows_dim)
        values = values[: len(look.missing)]
        shelf.insert(look, look.missing, values, len(places))
        return values

    def _part(self, places: tuple[int, ...]) -> dict[Any, Tensor]:
        """What was computed of these rows in this step."""
        return self._parts.setdefault(places, {})

    def _work(self, node: Node, some: tuple[int, ...] | None, done: dict[Any, Tensor]) -> Tensor:
        """Compute something that was put off, of all rows or some of them.

        Raises:
            FreezeError: the weights are others than when it was called.
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
        rows = op.rows if some is None else len(some)
        values = [self._value_of(one, some, done) for one in op.inputs]
        if is_in_place(op.function, {}):
            values[0] = values[0].clone()
        args, pairs = rebuild(op.spec, iter(values), rows)
        kwargs = dict(pairs)
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        with self._left_alone(), under(op.conditions):
            result = op.function(*args, **kwargs)
        results: list[Tensor] = []
        flatten(result, results, mutable=True)
        done.update({(id(op), place): one for place, one in enumerate(results)})
        self._working.append(op)  # so that no other operation gets its id
        return results[node.place]

    def _value_of(
        self, given: Any, some: tuple[int, ...] | None = None, done: dict[Any, Tensor] | None = None
    ) -> Tensor:
        """The values of something that goes into an operation."""
        if isinstance(given, Leaf):
            return given.value() if some is None else given.some(some)
        if isinstance(given, Tensor):
            return given if some is None else _narrowed(given, some)
        assert isinstance(given, Node)
        if some is not None:
            return self._work(given, some, {} if done is None else done)
        if (value := given.present()) is not None:
            return value
        lazy = given.alive()
        if isinstance(lazy, Lazy) and lazy.held is None and not given.family():
            return self.value(lazy)
        found = self._look(given.op.kind, given.place, given.op.leaves, given.op.rows)
        if found is not None and found[1].usable(found[0]) and not found[0].missing:
            return self._rows_or_work(given)
        return self._work(given, None, {} if done is None else done)

    # ---- rows that are kept

    def _store(self, node: Node) -> None:
        """Its values are needed: keep them, and compare them with those that are kept."""
        op, kind = node.op, node.op.kind
        at = kind, node.place, op.leaves
        value = node.present()
        if value is None or self._is_fresh(kind) or kind.barred or at in self._stored:
            return
        self._stored.add(at)
        shelf = self.library.shelf(kind, node.place, node.facts)
        if shelf is None or shelf.wrong:
            return
        _mark(node)
        if self._looks.get(at) is None:
            self._looks.pop(at, None)
        found = self._look(kind, node.place, op.leaves, op.rows)
        if found is None:
            return
        look = found[0]
        rows = rows_first(value, node.facts.rows_dim)
        if not shelf.usable(look) or look.missing:
            trial = self._trial(node, look, shelf)
            wanted = rows[look.missing] if trial is not None else None
            if trial is not None and wanted is not None:
                shelf.tried(trial[0], trial[1], wanted, len(look.keys))
            shelf.learn(look, rows)
            if shelf.wrong:
                self.library.warn(f"FeatureCache does not keep all that it could: {shelf.wrong}.")

    def _trial(self, node: Node, look: Lookup, shelf: Shelf) -> tuple[int, Tensor] | None:
        """The missing rows on their own, where a smaller batch may give the bits of the whole one."""
        if not look.missing or not shelf.usable(look) or (few := shelf.fewer(look)) is None:
            return None
        if shelf.index.same(few, len(look.keys)):
            return None
        places = (*look.missing, *look.missing[-1:] * (few - len(look.missing)))
        try:
            values = rows_first(self._work(node, places, self._part(places)), node.facts.rows_dim)
        except Exception:  # a function with the size of the batch in it
            shelf.index.refuse(few, len(look.keys))
            return None
        return few, values[: len(look.missing)]

    # ---- around a step

    def finish(self) -> None:
        """What outlives the step gets its values."""
        for reference in self._made:
            lazy = reference()
            if isinstance(lazy, Lazy) and lazy.node is not None:
                self.make_real(lazy)
        self.active = False
        for store in (self._leaves, self._looks, self._keys, self._parts):
            store.clear()
        self._working.clear()
        self._views.clear()

    @contextmanager
    def _left_alone(self) -> Iterator[None]:
        inside, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = inside


def _mark(node: Node) -> None:
    """Let all that it is made of know that it is needed."""
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


def _same_versions(tensors: Sequence[Tensor]) -> Callable[[], bool]:
    versions = [(one, version_of(one)) for one in tensors if not isinstance(one, Lazy)]
    return lambda: all(version_of(one) == version for one, version in versions)


def _narrowed(constant: Tensor, some: tuple[int, ...]) -> Tensor:
    """A constant that was repeated for each row, for some of them."""
    if constant.dim() and constant.stride(0) == 0 and constant.shape[0] > 1:
        return constant[:1].expand(len(some), *constant.shape[1:])
    return constant


def _overlap(one: Node, other: Node) -> bool:
    """Whether two views of one memory may share some of it: within a row, where their rows are as far apart."""
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
