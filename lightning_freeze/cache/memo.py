"""Compute the outputs of frozen modules once per distinct input row, and reuse them.

A `FrozenMemo` runs steps. During each step it intercepts the frozen modules of a model. Their outputs are computed, or
taken from rows stored by earlier steps, and have the same bits as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_freeze.cache.conditions import settings
from lightning_freeze.cache.eligible import Eligible
from lightning_freeze.cache.lazy import spare_from_compiler
from lightning_freeze.cache.library import Library, describe
from lightning_freeze.cache.parts import Part, entries
from lightning_freeze.cache.row_store import Room
from lightning_freeze.cache.step import Step
from lightning_freeze.cache.trees import Unknown, flatten
from lightning_freeze.cache.worth import Worth
from lightning_freeze.model.index import ModelIndex, is_compiled

_RESTLESS = 20  # states of a part without a hit in between, after which it is no longer cached


class FrozenMemo:
    """Runs steps, and skips frozen modules whose outputs are stored.

    Args:
        model: the module that is trained.
        room: storage for rows, with its limit.
        verify: whether to compare stored rows with computed ones before they are used, once per result and batch size.
        say: called with lines about results that are stored.
        warn: called with sentences about results that are not stored.

    Examples:
        >>> import torch
        >>> from lightning_freeze.cache.row_store import Storage
        >>> model = nn.Sequential(nn.Linear(8, 16).requires_grad_(False).eval(), nn.Linear(16, 2))
        >>> memo = FrozenMemo(model, Storage(1 << 20), say=lambda text: None)
        >>> batch = torch.randn(4, 8)
        >>> losses = [memo.run(lambda x: model(x).sum(), batch).item() for _ in range(5)]
        >>> memo.hits, len(set(losses))
        (12, 1)
        >>> memo.close()
    """

    def __init__(
        self,
        model: nn.Module,
        room: Room,
        verify: bool = True,
        say: Callable[[str], None] = print,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.model, self.say, self.warn = model, say, warn
        self.off = ""
        self.rows = self.hits = 0
        self._warned: set[str] = set()
        self._library = Library(room, verify, self._warn_once, {"model": type(model).__name__})
        self._index = ModelIndex(model)
        self._parameters = list(self._index.parameters.values())
        self._flags: list[bool] = []
        self._settings: tuple[Any, ...] = ()
        self._eligible: Eligible | None = None
        self._parts: dict[nn.Module, Part] = {}
        self._told: set[str] = set()
        self._tokens: set[int] = set()
        self._step: Step | None = None
        self._stood: dict[nn.Module, Any] = {}
        self._new_epoch = False
        self._worth = Worth()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of a model or callback has no memo

    # ---- steps

    def run(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `step(*args, **kwargs)`. Its result and effects are the same as without the memo."""
        if self.off or self._step is not None or self._worth.skips():
            return step(*args, **kwargs)
        self._look_around()
        if self.off:
            return step(*args, **kwargs)
        own = Step(self._library, batch_rows((args, kwargs)))
        result = self._within(own, step, args, kwargs)
        self._worth.after(own.lookups.rows, own.lookups.found)
        return result

    def evaluate(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`run` for a step that trains nothing: only results that training has needed are served and stored."""
        state = [parameter.requires_grad for parameter in self._parameters], settings()
        if self.off or self._step is not None or self._eligible is None:
            return step(*args, **kwargs)
        if state != (self._flags, self._settings):
            return step(*args, **kwargs)
        self._look_for_writes()
        return self._within(Step(self._library, batch_rows((args, kwargs)), trains=False), step, args, kwargs)

    def _within(self, own: Step, step: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        spare_from_compiler()
        self._library.number += 1
        self._step = own
        try:
            with self._standing_before():
                result = self._run(own, step, args, kwargs)
                self._say_dropped(self._library.publish())
        finally:
            self.rows, self.hits = self.rows + own.lookups.rows, self.hits + own.work.hits
            self._step = None
        self._after()
        return result

    def _run(self, own: Step, step: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            result = step(*args, **kwargs)
        except BaseException:
            with suppress(Exception):
                own.finish()
            raise
        own.finish()
        return result

    def _look_around(self) -> None:
        """Drop everything if the trainable set or a setting of torch has changed."""
        flags = [parameter.requires_grad for parameter in self._parameters]
        now = settings()
        if flags != self._flags or now != self._settings:
            self.forget()
            self._flags, self._settings = flags, now
            self._prepare()
        self._look_for_writes()

    def _look_for_writes(self) -> None:
        """After a change of loops, look for writes that did not raise a version."""
        if self._new_epoch:
            self._new_epoch = False
            for part in self._parts.values():
                part.epoch_start()

    def _prepare(self) -> None:
        compiled = next((span.name for span in self._index.spans if is_compiled(span.module)), None)
        if compiled is not None:
            self.turn_off(f"'{compiled}' is compiled, and what is compiled into one piece cannot be skipped in parts")
            return
        self._eligible = Eligible(self._index)
        self._parts = {module: Part(module, self._eligible.names[id(module)]) for module in self._eligible.modules}
        frozen = [parameter for parameter in self._parameters if not parameter.requires_grad]
        self._library.fix([*frozen, *self._index.buffers.values()])
        for why in self._eligible.refusals:
            self._warn_once(f"FeatureCache does less than it could: {why}.")

    @contextmanager
    def _standing_before(self) -> Iterator[None]:
        """Shadow the forward of frozen modules on the instance for a block."""
        assert self._eligible is not None
        first = entries(self._eligible.modules, self._parts)
        try:
            self._stand_before([*first, *self._eligible.particular])
            yield
            for module in first:  # if a module was not called, perhaps only its children are
                self._parts[module].passed |= not self._parts[module].called
        finally:
            for module, own in self._stood.items():
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own
            self._stood.clear()

    def _stand_before(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            if module not in self._stood:
                self._stood[module] = vars(module).get("forward")
                module.__dict__["forward"] = self._shadow(module, self._stood[module])

    def _shadow(self, module: nn.Module, own: Any) -> Any:
        part = self._parts.get(module)
        if part is None:
            return partial(_in_plain_tensors, self, module, own)
        if part.shadow is None or part.own is not own:
            if part.shadow is not None:
                part.forget()
            part.shadow, part.own = partial(_called, self, module, own), own
        return part.shadow

    def _after(self) -> None:
        tokens = {token for part in self._parts.values() for token in part.tokens()}
        if gone := self._tokens - tokens:
            self._say_dropped(self._library.drop(lambda kind: kind.token in gone))
        self._tokens = tokens
        names = {shelf.name for shelf in self._library.shelves if shelf.store.bytes and not shelf.wrong}
        for name in sorted(names - self._told):
            self.say(f"FeatureCache: what comes out of '{name}' is kept")
        self._told |= names

    def _say_dropped(self, kinds: int) -> None:
        if kinds:
            self.say("FeatureCache: the frozen part was changed by somebody else; the rows of it are dropped")

    # ---- modules, as they are called in a step

    def called(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A frozen module is called."""
        if self._step is None:
            return forward(*args, **kwargs)
        part = self._parts[module]
        part.called = True
        if part.whole is None and part.hooked():
            part.judge("has a hook inside", final=True)
            self._stand_before(entries(module.modules(), self._parts))
        return self._step.call(part, forward, args, kwargs)

    def plain(self, args: Any, kwargs: Any) -> None:
        """Replace lazy tensors in the arguments of a module by plain ones."""
        if self._step is not None:
            self._step.realize(args, kwargs)

    # ---- epochs and the end

    def epoch_end(self, again: bool = True) -> None:
        """Turn off if an epoch that began with stored rows found none of them: the inputs are always new.

        Args:
            again: whether rows of the next epoch may have come before; else the next epoch continues this one.
        """
        self.turn()
        if again and not self.off and self._library.epoch_end():
            self.turn_off("no row came a second time in a whole epoch; inputs seem to be augmented at random")
        self._worth.epoch_start(self._library.began_with_rows)

    def turn(self) -> None:
        """Called when another loop begins, for which weights may be exchanged."""
        self._new_epoch = True
        self.publish()

    def publish(self) -> None:
        """Make new rows visible to other processes."""
        if self._eligible is not None and self._library.pending:
            with self._standing_before():
                self._say_dropped(self._library.publish(hurry=True))

    def forget(self) -> None:
        """Drop all rows and all state."""
        self.publish()
        self.report()
        self._library.clear()
        self._parts, self._eligible = {}, None
        self._worth = Worth()
        self._told.clear()
        self._tokens.clear()
        self.rows = self.hits = 0

    def report(self) -> None:
        """Report what was saved since the frozen part last changed."""
        kept = [shelf for shelf in self._library.shelves if shelf.store.bytes]
        if kept and self.rows:
            size = sum(shelf.store.bytes for shelf in kept)
            self.say(
                f"FeatureCache, up to {describe(kept)}: {self.hits:,} of {self.rows:,} rows served, "
                f"{size / 2**20:.1f} MiB kept"
            )

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self.warn(text)

    def turn_off(self, why: str) -> None:
        """Turn the memo off for the rest of the run."""
        self.forget()
        self.off = why
        self.warn(f"FeatureCache is off: {why.removesuffix('.')}.")

    def close(self) -> None:
        """Free memory and files. A closed memo runs steps unchanged."""
        self.forget()
        self._library.room.close()
        self.off = self.off or "closed"


def _called(memo: FrozenMemo | None, module: nn.Module, own: Any, /, *args: Any, **kwargs: Any) -> Any:
    """`forward` of a frozen module within a step; a copy of the module has no memo."""
    forward = own if own is not None else partial(type(module).forward, module)
    return forward(*args, **kwargs) if memo is None else memo.called(module, forward, args, kwargs)


def _in_plain_tensors(memo: FrozenMemo | None, module: nn.Module, own: Any, /, *args: Any, **kwargs: Any) -> Any:
    forward = own if own is not None else partial(type(module).forward, module)
    if memo is not None:
        memo.plain(args, kwargs)
    return forward(*args, **kwargs)


def batch_rows(batch: Any) -> int | None:
    """The number of rows of a batch: the length of its first one-dimensional tensor, else of its first tensor."""
    tensors: list[Tensor] = []
    with suppress(Unknown):
        flatten(batch, tensors, mutable=True)
    labels = [len(tensor) for tensor in tensors if tensor.dim() == 1]
    sizes = [len(tensor) for tensor in tensors if tensor.dim()]
    return next(iter((*labels, *sizes)), None) or None
