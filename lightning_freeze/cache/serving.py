"""One step along a recorded one: the modules of the region return promises, the last of them the stored rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from lightning_freeze.cache.boundary import Region, describe
from lightning_freeze.cache.guard import exchanged
from lightning_freeze.cache.promise import FACTS, Diverged, Promise, promise
from lightning_freeze.cache.recording import Call, Fixed, Leaf, conditions, leaf_of, shadowed, tensors_of
from lightning_freeze.errors import FreezeError


class Source(Protocol):
    """Where a step gets rows from, and where it leaves those it had to compute."""

    def rows(self, given: list[Tensor], compute: Callable[[Tensor], Tensor] | None) -> Tensor | None:
        """What flows on past the boundary for these inputs of the entry; None: compute it.

        Args:
            given: the tensors that the entry takes.
            compute: runs the region on some rows; None where it can run as a part of the step only.
        """

    def learn(self, rows: Tensor) -> None:
        """What was computed after `rows` had returned None."""


class Step(TorchFunctionMode):
    """A step that follows a region; `served` tells afterwards whether its work was skipped.

    Args:
        region: what may be skipped.
        source: of the rows.
        opaque: modules of the model that must not be watched (see `recording.OPAQUE`).
    """

    def __init__(self, region: Region, source: Source, opaque: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self._opaque = opaque
        self.region, self.source = region, source
        self.served = False
        self._state = "before"  # then "serving" or "computing", then "after"
        self._skip = region.earlier
        self._cursor = 0
        self._inside = False
        self._over = False
        self._rows: Tensor | None = None
        self._last: Any = None
        self._tainted: Any = WeakIdKeyDictionary()
        self._originals: dict[nn.Module, Callable[..., Any]] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Run the step inside."""
        self._originals = {module: module.forward for module in self.region.modules}
        between = len(self.region.trace) > len(self.region.calls)
        forwards = {module: _unwatched(module.forward) for module in self._opaque if between}
        self._originals |= {module: forwards[module] for module in self._originals if module in forwards}
        forwards |= {module: self._shadow(module) for module in self._originals}
        try:
            with shadowed(forwards), self if between else nullcontext():
                yield
        finally:
            self._over = True
            self._rows = self._last = None

    def _shadow(self, module: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._state == "after" or self._inside:
                return self._originals[module](*args, **kwargs)
            if self._state == "before":
                if module is not self.region.calls[0].function:
                    return self._originals[module](*args, **kwargs)
                if self._skip:
                    self._skip -= 1
                    return self._originals[module](*args, **kwargs)
                self._enter(args, kwargs)
            if self._state == "serving":
                return self._serve(module, args, kwargs)
            return self._compute(module, args, kwargs)

        return forward

    # ---- the entry

    def _enter(self, args: Any, kwargs: Any) -> None:
        entry = self.region.calls[0]
        with torch._C.DisableTorchFunction():
            flat, _ = tree_flatten((args, kwargs))
            given = [leaf for leaf in flat if isinstance(leaf, Tensor)]
            fits = (
                _repeats(entry, entry.function, args, kwargs)
                and [leaf_of(tensor) for tensor in given] == entry.tensors
                and not any(tensor.requires_grad or tensor.is_inference() for tensor in given)
                and conditions() == entry.conditions
            )
        self._state = "after"
        if fits:
            with self._left_alone():
                self._rows = self.source.rows(given, self._chain if self.region.chain else None)
            self._state = "computing" if self._rows is None else "serving"
            self.served = self._rows is not None

    @contextmanager
    def _left_alone(self) -> Iterator[None]:
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def _chain(self, rows: Tensor) -> Tensor:
        for module in self.region.modules:
            rows = self._originals[module](rows)
        return rows

    # ---- promises instead of work

    def _serve(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self._next()
        if not _repeats(call, module, args, kwargs):
            raise Diverged(f"'{type(module).__name__}' is called where {describe(call)} was")
        if call is self.region.calls[-1]:
            self._state = "after"
            return self._filled(call, self._rows)
        return self._filled(call, None)

    def _filled(self, event: Any, rows: Tensor | None) -> Any:
        leaves, tree = event.result
        filled = [
            promise(leaf.shape, leaf.dtype, leaf.device, self) if isinstance(leaf, Leaf) else leaf for leaf in leaves
        ]
        if rows is not None:
            filled[self.region.output] = rows
        return tree_unflatten(filled, tree)

    def _next(self) -> Any:
        event = self.region.trace[self._cursor] if self._cursor < len(self.region.trace) else None
        self._cursor += 1
        return event

    def meet(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Called by a promise that a function has met."""
        name = getattr(function, "__name__", str(function))
        boundary = self.region.calls[-1].name
        if self._over:
            raise FreezeError(
                f"FeatureCache: '{name}' wants a value that a step has not computed, from before '{boundary}'.\n"
                "  Take what you need of it in training_step, or remove FeatureCache"
            )
        if self._state != "serving":
            raise Diverged(f"'{name}' uses a value from before '{boundary}' after it")
        event = self._next()
        if (
            event is None
            or isinstance(event, Call)
            or event.function is not function
            or not _matches(event, args, kwargs)
        ):
            raise Diverged(f"'{name}' works on a value from before '{boundary}', which it did not do before")
        return self._filled(event, None)

    # ---- work as ever, watched

    def _compute(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self._next()
        follows = _repeats(call, module, args, kwargs)
        if follows and self.region.chain and self._last is not None:
            follows = args[0] is self._last
        if not follows:
            self._state = "after"
            return self._originals[module](*args, **kwargs)
        with self._left_alone():
            result = self._originals[module](*args, **kwargs)
            self._computed(call, result)
        return result

    def _computed(self, call: Call, result: Any) -> None:
        leaves, tree = tree_flatten(result)
        if [leaf_of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves] != call.result[
            0
        ] or tree != call.result[1]:
            self._state = "after"
        elif call is self.region.calls[-1]:
            self._state = "after"
            self.source.learn(leaves[self.region.output])
        else:
            self._last = result
            self._taint(leaves)

    def _taint(self, leaves: list[Any]) -> None:
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self._tainted[leaf] = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Between the calls of a step that computes: do the functions do what they did in the recording?"""
        kwargs = kwargs or {}
        if self._state != "computing" or self._inside or func in FACTS:
            return func(*args, **kwargs)
        flat, _ = tree_flatten((args, kwargs))
        if not any(isinstance(leaf, Tensor) and leaf in self._tainted for leaf in flat):
            return func(*args, **kwargs)
        event = self._next()
        if not _is_next(event, func, args, kwargs):
            self._state = "after"
        result = func(*args, **kwargs)
        self._taint(tree_flatten(result)[0])
        return result


def _unwatched(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(tensor, Promise) for tensor in tensors_of((args, kwargs))):
            raise Diverged("a module takes a value that it did not take before")
        with torch._C.DisableTorchFunction():
            return original(*args, **kwargs)

    return forward


def _is_next(event: Any, function: Any, args: Any, kwargs: Any) -> bool:
    known = event is not None and not isinstance(event, Call)
    return known and event.function is function and _matches(event, args, kwargs)


def _repeats(event: Any, module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a call is the recorded one, with the same weights in the module."""
    same = isinstance(event, Call) and event.function is module and not exchanged(event.slots)
    return same and _matches(event, args, kwargs)


def _matches(event: Any, args: Any, kwargs: Any) -> bool:
    """Whether the arguments are those of the recording, but for the values of tensors."""
    flat, tree = tree_flatten((args, kwargs))
    recorded, recorded_tree = event.arguments
    return bool(tree == recorded_tree) and all(map(_same, flat, recorded))


def _same(leaf: Any, recorded: Any) -> bool:
    if isinstance(leaf, Tensor) or isinstance(recorded, Fixed):
        return isinstance(leaf, Tensor) and isinstance(recorded, Fixed) and recorded.identity in (0, id(leaf))
    return leaf is recorded or (type(leaf) is type(recorded) and (leaf == recorded) is True)


def promised(result: Any) -> bool:
    """Whether what a step returned holds a promise."""
    return any(isinstance(leaf, Promise) for leaf in tree_flatten(result)[0])
