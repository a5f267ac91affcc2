"""One training step, watched: which modules make up the frozen prefix, and what of it the rest of the step uses.

Modules that are frozen, in eval mode and deterministic (`clean`) are noted as calls; every torch function of the step
is noted with the tensors that go in and come out. From these notes `boundary.py` finds the part that can be cached.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from lightning_freeze.cache.guard import exchanged, slots_of, version_of
from lightning_freeze.cache.promise import FACTS
from lightning_freeze.model.index import ModelIndex

# They take another way, with other bits, where a torch function is watched; so they are run unwatched, as a whole.
OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
CONSTANT = 0  # the serial of parameters, buffers and what is made of them alone
_READS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "nonzero", "unique", "masked_select"}
_READS |= {f"__{name}__" for name in ("bool", "float", "int", "index", "complex", "array", "contains")} | {
    "data_ptr",
    "untyped_storage",
    "storage",
}
_IN_PLACE = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")}
_IN_PLACE |= {"__setitem__", "__set__"}


@dataclass(frozen=True)
class Leaf:
    """What is known of a tensor beside its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Fixed:
    """Stands for a tensor among arguments: for the parameter or buffer with this id, or for any (0)."""

    identity: int = 0


@dataclass
class Event:
    """A torch function, or the call of a module.

    Attributes:
        start, end: when, on one clock for all events.
        ins, outs: serials of the tensors that went in and came out.
        call: place of the module call it happened in; None at the level of the step.
        reads: it tells Python a value.
        writes: serial of the tensor that it changes in place.
        made_of: ids of the parameters and buffers that went in, as they are or by way of what is made of them alone.
        function: what was called; the module for a call.
        arguments: flat arguments, with a `Fixed` for each tensor, and the tree they are of.
        result: flat results, tensors as `Leaf`, and their tree.
    """

    start: int
    end: int
    ins: list[int]
    outs: list[int]
    call: int | None = None
    reads: bool = False
    writes: int | None = None
    function: Any = None
    made_of: frozenset[int] = frozenset()
    arguments: tuple[list[Any], Any] = field(default_factory=lambda: ([], None))
    result: tuple[list[Any], Any] = field(default_factory=lambda: ([], None))


@dataclass
class Call(Event):
    """The call of a clean module.

    Attributes:
        name: the module's.
        tensors: the tensor arguments as `Leaf`.
        seconds: how long it took.
        flaw: why what came out may not hang on what went in alone; "" if nothing speaks against it.
        random: the random state at its start and its end.
        conditions: at its start, see `conditions`.
        slots: the parameters and buffers of the module, which `functional_call` exchanges for the length of a call.
        alone: it takes one tensor, by position, and nothing else, and gives one.
        mutates: it writes into what it was given.
        held: the tensors that went in and came out, with their versions, until the step is over.
    """

    name: str = ""
    tensors: list[Leaf] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    flaw: str = ""
    random: tuple[Any, Any] = (None, None)
    conditions: tuple[Any, ...] = ()
    slots: list[tuple[Any, str, Any]] = field(default_factory=list)
    alone: bool = False
    mutates: bool = False
    held: tuple[list[Tensor], list[Tensor], list[int]] = field(default_factory=lambda: ([], [], []))


@dataclass
class Recording:
    """What one step showed."""

    calls: list[Call] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    returned: set[int] = field(default_factory=set)
    refused: str = ""  # a module in train mode that may not be there
    stopped: str = ""  # what ended the prefix


def unclean(module: nn.Module) -> str:
    """Why a module on its own, not those in it, can be no part of a frozen prefix; "" if it can."""
    if any(parameter is not None and parameter.requires_grad for parameter in module._parameters.values()):
        return "trains"
    if isinstance(module, ScriptModule):
        return "is scripted"
    return in_train_mode(module)


def in_train_mode(module: nn.Module) -> str:
    """What a module does that no cache can repeat: draw random numbers, or use the statistics of a batch."""
    if isinstance(module, _NormBase):
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            return "normalises with the statistics of the batch"
        if module.training and (isinstance(module, _BatchNorm) or module.track_running_stats):
            return f"is a {type(module).__name__} in train mode, which normalises with the batch and moves statistics"
    rate = getattr(module, "p", 1.0) if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
    draws = isinstance(module, _DropoutNd | nn.RReLU | nn.MultiheadAttention | nn.RNNBase)
    if module.training and draws and (isinstance(module, nn.RReLU) or (isinstance(rate, float | int) and rate > 0)):
        return f"is a {type(module).__name__} in train mode, which draws random numbers"
    return ""


def clean_modules(index: ModelIndex) -> tuple[set[int], dict[int, str]]:
    """Ids of the modules that are clean with all under them; and ids of those that refuse, with the reason.

    A module refuses that is in train mode inside a frozen one: the user wants it frozen, and it is not.
    """
    spans = index.spans
    reasons = [unclean(span.module) for span in spans]
    clean = {id(span.module) for place, span in enumerate(spans) if not any(reasons[place : span.end]) and place}
    refusing: dict[int, str] = {}
    for place, span in enumerate(spans):
        why = in_train_mode(span.module)
        if not why:
            continue
        owner = max((k for k in range(place + 1) if spans[k].end > place and spans[k].stop > spans[k].start), default=0)
        entries = index.entries[spans[owner].start : spans[owner].stop]
        if owner and not any(index.parameters[name].requires_grad for name in entries):
            refusing[id(span.module)] = f"'{span.name}' {why}"
    return clean, refusing


def leaf_of(tensor: Tensor) -> Leaf:
    """What is known of a tensor."""
    return Leaf(
        tuple(tensor.shape),
        tuple(tensor.stride()) if tensor.layout == torch.strided else (),
        tensor.dtype,
        tensor.device,
    )


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of nested tuples, lists and dicts."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def conditions() -> tuple[Any, ...]:
    """What outputs hang on beside inputs and weights; a step may change it around a module."""
    autocast = [(torch.is_autocast_enabled(one), torch.get_autocast_dtype(one)) for one in ("cpu", "cuda")]
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *autocast,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )


def random_state(device: torch.device | None) -> list[Any]:
    """The state of the generators that a step on this device draws from."""
    states: list[Any] = [torch.get_rng_state(), random.getstate(), None]
    if (numpy := sys.modules.get("numpy")) is not None:
        kind, words, *rest = numpy.random.get_state()
        states[2] = kind, words.tobytes(), *rest
    if device is not None and device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def restore_random(states: Sequence[Any], device: torch.device | None) -> None:
    """Go back to a state."""
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    if states[2] is not None:
        numpy = sys.modules["numpy"]
        kind, words, *rest = states[2]
        numpy.random.set_state((kind, numpy.frombuffer(words, numpy.uint32), *rest))
    if device is not None and len(states) > 3:
        torch.cuda.set_rng_state(states[3], device)


def _same_random(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(
        torch.equal(left, right) if isinstance(left, Tensor) else left == right
        for left, right in zip(one, other, strict=True)
    )


class Recorder(TorchFunctionMode):
    """Watches one step: `with recorder.watching(): result = step()`, then `recorder.finish(result)`.

    Args:
        index: the model.
        device: where it is.
    """

    def __init__(self, index: ModelIndex, device: torch.device | None) -> None:
        super().__init__()
        self.index, self.device = index, device
        self.notes = Recording()
        self._names = {id(span.module): span.name for span in reversed(index.spans)}
        self._clean, self._refusing = clean_modules(index)
        clean = {id(span.module): span.module for span in index.spans if id(span.module) in self._clean}
        self._slots = {key: slots_of(module.modules()) for key, module in clean.items()}
        self._constants = {id(tensor) for tensor in (*index.parameters.values(), *index.buffers.values())}
        self._constants -= {id(p) for p in index.parameters.values() if p.requires_grad}
        self._attributes = {
            id(value) for span in index.spans for value in vars(span.module).values() if isinstance(value, Tensor)
        }
        self._serials: Any = WeakIdKeyDictionary()
        self._made_of: Any = WeakIdKeyDictionary()  # constants -> ids of the parameters and buffers they are made of
        self._clock = 0
        self._next = CONSTANT
        self._call: int | None = None
        self._over = False

    # ---- serials

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _serial(self, tensor: Tensor) -> int:
        if (found := self._serials.get(tensor)) is not None:
            return int(found)
        if id(tensor) in self._constants:
            return CONSTANT
        if self._call is not None and id(tensor) in self._attributes:
            return CONSTANT  # watched with the other attributes of the module
        return self._mark(tensor)

    def _mark(self, tensor: Tensor) -> int:
        self._next += 1
        self._serials[tensor] = self._next
        return self._next

    # ---- torch functions

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FACTS:
            return func(*args, **kwargs)
        start, name = self._tick(), getattr(func, "__name__", "")
        flat, tree = tree_flatten((args, kwargs))
        ins = [self._serial(leaf) for leaf in flat if isinstance(leaf, Tensor)]
        made_of = self._sources(flat)
        result = func(*args, **kwargs)
        leaves, result_tree = tree_flatten(result)
        found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        constant = bool(ins) and not any(ins) and not any(leaf.requires_grad for leaf in found)
        outs = [self._set_constant(leaf, made_of) if constant else self._mark(leaf) for leaf in found]
        written = args[0] if name in ("__setitem__", "__set__") and args else kwargs.get("out")
        if isinstance(written, Tensor) and id(written) not in self._constants:
            outs.append(self._mark(written))
        in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")) or "out" in kwargs
        writes = ins[0] if in_place and ins else None
        event = Event(start, self._tick(), ins, outs, self._call, name in _READS, writes, func)
        event.made_of = made_of
        if self._call is None and not self._over:
            event.arguments = [self._stands_for(leaf) for leaf in flat], tree
            event.result = [leaf_of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], result_tree
        self.notes.events.append(event)
        if any(leaf.requires_grad for leaf in found) and not self._over:
            self._stop("")
        return result

    def _stands_for(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return Fixed(id(leaf) if id(leaf) in self._constants else 0)
        return leaf

    def _sources(self, flat: list[Any]) -> frozenset[int]:
        own = [id(leaf) for leaf in flat if isinstance(leaf, Tensor) and id(leaf) in self._constants]
        made = [self._made_of.get(leaf, frozenset()) for leaf in flat if isinstance(leaf, Tensor)]
        return frozenset(own).union(*made)

    def _set_constant(self, tensor: Tensor, made_of: frozenset[int]) -> int:
        if id(tensor) not in self._constants:
            self._serials[tensor] = CONSTANT
            self._made_of[tensor] = made_of
        return CONSTANT

    def _stop(self, name: str) -> None:
        self._over = True
        self.notes.stopped = name

    # ---- modules

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs inside."""
        modules = {id(span.module): span.module for span in self.index.spans}
        mine = self._clean | self._refusing.keys()
        watched = [one for key, one in modules.items() if key in mine or isinstance(one, OPAQUE)]
        with shadowed({module: self._shadow(module) for module in watched}), self:
            yield

    def finish(self, result: Any) -> Recording:
        """The notes, with what the step returned."""
        self.notes.returned = {self._serials.get(leaf, -1) for leaf in tensors_of(result)}
        return self.notes

    def _shadow(self, module: nn.Module) -> Callable[..., Any]:
        original = self._opaque(module.forward) if isinstance(module, OPAQUE) else module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if id(module) in self._refusing and not self._over:
                self.notes.refused = self.notes.refused or self._refusing[id(module)]
            if self._call is not None or self._over or id(module) not in self._clean:
                return original(*args, **kwargs)
            return self._watch(module, original, args, kwargs)

        return forward

    def _opaque(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction():
                start, ins = self._tick(), [self._serial(tensor) for tensor in tensors_of((args, kwargs))]
                result = original(*args, **kwargs)
                found = tensors_of(result)
                outs = [self._mark(tensor) for tensor in found]
                self.notes.events.append(Event(start, self._tick(), ins, outs, self._call, function=original))
                if self._call is None and any(tensor.requires_grad for tensor in found) and not self._over:
                    self._stop("")
            return result

        return forward

    def _watch(self, module: nn.Module, original: Any, args: Any, kwargs: Any) -> Any:
        flat, tree = tree_flatten((args, kwargs))
        given = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        if any(leaf.requires_grad for leaf in given):
            self._stop(self._names[id(module)])
            return original(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            call = self._open(module, flat, tree, given)
            before = None, _versions(given), _versions(_state(module))
        self._call = len(self.notes.calls)
        self.notes.calls.append(call)
        call.began = self._now()
        try:
            result = original(*args, **kwargs)
        finally:
            self._call = None
        call.ended = self._now()
        with torch._C.DisableTorchFunction():
            self._close(call, result, before, given)
        call.alone = len(flat) == len(args) == 1 and isinstance(result, Tensor) and not _hooked(module)
        return result

    def _open(self, module: nn.Module, flat: list[Any], tree: Any, given: list[Tensor]) -> Call:
        call = Call(
            self._tick(), 0, [self._serial(leaf) for leaf in given], [], name=self._names[id(module)], function=module
        )
        call.arguments = [Fixed() if isinstance(leaf, Tensor) else leaf for leaf in flat], tree
        call.tensors = [leaf_of(leaf) for leaf in given]
        call.random = random_state(self.device), None
        call.conditions = conditions()
        call.slots = self._slots[id(module)]
        call.flaw = f"'{call.name}' is called with other weights than its own" if exchanged(call.slots) else ""
        return call

    def _close(self, call: Call, result: Any, before: Any, given: list[Tensor]) -> None:
        call.random = call.random[0], random_state(self.device)
        leaves, result_tree = tree_flatten(result)
        found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        call.outs = [self._mark(leaf) for leaf in found]
        call.result = [leaf_of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], result_tree
        call.end = self._tick()
        call.held = given, found, _versions([*given, *found])
        call.mutates = before[1] != _versions(given)
        call.flaw = call.flaw or self._flaw(call, before[2] != _versions(_state(call.function)))
        if any(leaf.requires_grad for leaf in found):
            self.notes.calls.pop()
            self._stop(call.name)

    def _flaw(self, call: Call, wrote: bool) -> str:
        if not _same_random(*call.random):
            return f"'{call.name}' draws random numbers"
        return f"'{call.name}' writes its buffers" if wrote else ""

    def _now(self) -> float:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [version_of(tensor) for tensor in tensors]


def _state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def untouched(call: Call, *, given: bool) -> bool:
    """Whether what went in (`given`), or what came out, is as it was when the call ended; False if nobody can tell."""
    count = len(call.held[0])
    tensors, versions = (call.held[0], call.held[2][:count]) if given else (call.held[1], call.held[2][count:])
    return versions == _versions(tensors) and not any(tensor.is_inference() for tensor in tensors)


def same_random_between(one: Call, other: Call) -> bool:
    """Whether nothing was drawn from the end of one call to the start of another."""
    return _same_random(one.random[1], other.random[0])


@contextmanager
def shadowed(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another forward, on the instance, for a while."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own
