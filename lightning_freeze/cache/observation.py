"""Observe one call of a module: does it do anything besides computing its result from its arguments?

If not, the module may be skipped as a whole. If it counts its calls, keeps a feature in a list, reads a value, prints,
draws a random number or has a hook inside, its Python code runs in every step.
"""

from __future__ import annotations

import dis
import gc
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.eligible import PARTICULAR
from lightning_freeze.cache.row_keys import row_keys
from lightning_freeze.cache.seal import CONTAINERS, own, picture, user_classes, version_of

_READS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "nonzero", "unique", "masked_select", "unbind"}
_READS |= {
    f"__{name}__" for name in ("bool", "float", "int", "index", "complex", "array", "contains", "repr", "dlpack")
}
_READS |= {"data_ptr", "untyped_storage", "storage", "requires_grad_", "register_hook", "set_"}
_OUTSIDE = {
    "print",
    "open",
    "write",
    "input",
    "sleep",
    "time",
    "perf_counter",
    "monotonic",
    "time_ns",
    "next",
    "urandom",
}
_OUTSIDE |= {"now", "perf_counter_ns", "monotonic_ns", "getpid", "exec", "eval"}
_MODES = {"is_grad_enabled", "is_inference_mode_enabled", "is_inference_mode", "is_inference"}


@dataclass
class Seen:
    """The observation of a call.

    Attributes:
        flaw: why the module may not be skipped; "" if it may.
        final: whether another observation would give the same flaw.
        looks: whether it asked if gradients are enabled.
        codes: the functions outside torch that ran.
        depends: return whether the outside values that these functions read are unchanged.
    """

    flaw: str = ""
    final: bool = True
    looks: bool = False
    codes: dict[Any, Any] = field(default_factory=dict)
    depends: list[Unchanged] = field(default_factory=list)


class Probe(Tensor):
    """A tensor that reports values read from it by Python code."""

    watcher: _Watcher | None = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        watcher = Probe.watcher
        if watcher is not None and getattr(func, "__name__", "") in _READS:
            watcher.flaw("reads a value")
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if watcher is not None:
            watcher.made(result)
        return result


class _Watcher:
    def __init__(self) -> None:
        self.seen = Seen()
        self.probes: list[weakref.ref[Tensor]] = []
        self._globals: dict[tuple[int, str], tuple[dict[str, Any], str, int, Any]] = {}

    def flaw(self, text: str, final: bool = True) -> None:
        if not self.seen.flaw:
            self.seen.flaw, self.seen.final = text, final

    def made(self, result: Any) -> None:
        for one in result if isinstance(result, list | tuple) else (result,):
            if isinstance(one, Probe):
                self.probes.append(weakref.ref(one))

    # ---- the Python that runs

    def trace(self, frame: Any, event: str, arg: Any) -> None:
        if event == "c_call":
            name = getattr(arg, "__name__", "")
            if name in _MODES:
                self.seen.looks = self.seen.looks or not _of_torch(frame)
            elif name in _OUTSIDE and not _of_torch(frame):
                self.flaw(f"calls {name}()")
        elif event == "call" and frame.f_code not in self.seen.codes and not _of_torch(frame):
            self.seen.codes[frame.f_code] = None
            self._outside(frame)

    def _outside(self, frame: Any) -> None:
        code = frame.f_code
        if "is_grad_enabled" in code.co_names:
            self.seen.looks = True
        if code.co_freevars and any(
            one.opname == "STORE_DEREF" and one.argval in code.co_freevars for one in dis.get_instructions(code)
        ):
            self.flaw("writes a variable of an outer function")
        places = [(frame.f_globals, name) for name in code.co_names if name in frame.f_globals]
        if code.co_freevars:
            cells = {name: value for name, value in frame.f_locals.items() if name in code.co_freevars}
            places += [(cells, name) for name in code.co_freevars if name in cells]
        for values, name in places:
            if not isinstance(values[name], types.ModuleType | type) and (id(values), name) not in self._globals:
                depth = 3 if isinstance(values[name], CONTAINERS) else 1
                self._globals[id(values), name] = values, name, depth, picture(values[name], depth)

    def settle(self) -> None:
        """After the call, check that outside values are unchanged, and return checks for later calls."""
        for values, name, depth, before in self._globals.values():
            if picture(values.get(name), depth) != before:
                self.flaw(f"changes '{name}', which lies outside of it")
            else:
                self.seen.depends.append(Unchanged(values, name, depth, before))


@dataclass(frozen=True)
class Unchanged:
    """Tells whether a value outside a module is unchanged."""

    values: dict[str, Any]
    name: str
    depth: int
    before: Any

    def __call__(self) -> bool:
        return bool(picture(self.values.get(self.name), self.depth) == self.before)

    def now(self) -> Any:
        """The name and the current value."""
        return self.name, self.values.get(self.name)


def _of_torch(frame: Any) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in (
        "torch",
        "lightning_freeze",
        "importlib",
        "contextlib",
    )


def random_state(device: torch.device | None) -> list[Any]:
    """The state of the random generators of this device."""
    states: list[Any] = [torch.get_rng_state().numpy().tobytes(), random.getstate()]
    if (numpy := sys.modules.get("numpy")) is not None:
        kind, words, *rest = numpy.random.get_state()
        states.append((kind, words.tobytes(), *rest))
    if device is not None and device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return states


def observe(module: nn.Module, given: list[Tensor], call: Callable[[list[Tensor]], Any]) -> tuple[Any, Seen]:
    """Run a call of a module, and observe its effects.

    Args:
        module: the module.
        given: the input tensors.
        call: runs the call with tensors that replace these.

    Returns:
        The result with plain tensors, and the observation.
    """
    watcher = _Watcher()
    with _nothing_collected():
        before = _State(module, given)
        result = _watched(watcher, module, given, call)
        watcher.settle()
        for text, final in before.differences():
            watcher.flaw(text, final)
    return result, watcher.seen


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Pause the garbage collector: code that it runs would look like an effect of the module."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _watched(watcher: _Watcher, module: nn.Module, given: list[Tensor], call: Callable[[list[Tensor]], Any]) -> Any:
    originals: dict[int, Tensor] = {}

    def probed() -> list[Tensor]:
        if isinstance(module, PARTICULAR):
            return given
        once = {id(tensor): tensor.as_subclass(Probe) for tensor in given}  # attention compares identities
        watcher.made([*once.values()])
        return [once[id(tensor)] for tensor in given]

    with _probing(watcher, module):
        probes = probed()
        originals = {id(probe): tensor for probe, tensor in zip(probes, given, strict=True)}  # to find it in the result
        result = call(probes)
    result = _unprobe(result, originals, watcher)
    del probes, probed
    kept = {id(one) for one in _leaves(result)}
    if _share_memory([*_once(_leaves(result)), *given, *module.parameters(), *module.buffers()], len(kept)):
        watcher.flaw("returns views of what it was given, of its weights or of each other")
    for reference in watcher.probes:
        if (alive := reference()) is not None and type(alive) is Probe:
            if id(alive) not in kept:
                watcher.flaw("keeps a tensor that it made or was given")
            alive.__class__ = Tensor  # type: ignore[assignment]
    return result


@contextmanager
def _probing(watcher: _Watcher, module: nn.Module) -> Iterator[None]:
    particular = [one for one in module.modules() if isinstance(one, PARTICULAR)]
    owns = [vars(one).get("forward") for one in particular]
    profile, outer = sys.getprofile(), Probe.watcher
    try:
        for one in particular:
            one.__dict__["forward"] = _plainly(one.forward, watcher)
        Probe.watcher = watcher
        if profile is None:
            sys.setprofile(watcher.trace)
        else:
            watcher.flaw("runs under a profiler, so that nobody sees what it does", final=False)
        yield
    finally:
        sys.setprofile(profile)
        Probe.watcher = outer
        for one, before in zip(particular, owns, strict=True):
            if before is None:
                del one.__dict__["forward"]
            else:
                one.__dict__["forward"] = before


def _plainly(forward: Callable[..., Any], watcher: _Watcher) -> Callable[..., Any]:
    """Call a module that uses another code path for subclasses of Tensor with plain tensors."""

    def plain(*args: Any, **kwargs: Any) -> Any:
        once: dict[int, Tensor] = {}  # attention checks whether its arguments are identical

        def as_tensor(tensor: Tensor) -> Tensor:
            return once.setdefault(id(tensor), tensor.as_subclass(Tensor) if type(tensor) is Probe else tensor)

        result = forward(*_map(args, as_tensor), **_map(kwargs, as_tensor))
        result = _map(result, lambda one: one.as_subclass(Probe))
        watcher.made(result)
        return result

    return plain


def _map(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if type(tree) in (list, tuple):
        return type(tree)(_map(part, change) for part in tree)
    return {key: _map(part, change) for key, part in tree.items()} if isinstance(tree, dict) else tree


def _leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree if isinstance(tree, list | tuple) else tree.values() if isinstance(tree, dict) else ()
    parts = parts or (vars(tree).values() if hasattr(tree, "__dict__") and not isinstance(tree, nn.Module) else ())
    return [leaf for part in parts for leaf in _leaves(part)]


def _unprobe(result: Any, originals: dict[int, Tensor], watcher: _Watcher) -> Any:
    """Turn probes into plain tensors in place, so that containers of them need no change."""
    if id(result) in originals:
        watcher.flaw("returns what it was given")
        return originals[id(result)]
    for one in _leaves(result):
        if id(one) in originals:
            watcher.flaw("returns what it was given")
        if type(one) is Probe:
            one.__class__ = Tensor  # type: ignore[assignment]
    return result


def _once(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(one): one for one in tensors}.values())


def _share_memory(tensors: list[Tensor], first: int) -> bool:
    """Whether one of the first tensors shares memory with one of the others."""
    places = [one.untyped_storage().data_ptr() for one in tensors if one.layout == torch.strided and one.numel()]
    return len(set(places[:first])) < min(first, len(places)) or not set(places[:first]).isdisjoint(places[first:])


def _content(tensor: Tensor) -> Any:
    """A value that changes when a tensor is written; torch does not count writes into inference tensors."""
    return row_keys([tensor.unsqueeze(0)], 1).tolist() if tensor.is_inference() else version_of(tensor)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks."""
    slots = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(slots)


class _State:
    """The state that a call must not change."""

    def __init__(self, module: nn.Module, given: list[Tensor]) -> None:
        self._module, self._given = module, given
        self._device = given[0].device if given else None
        self._before = self._now()

    def _now(self) -> list[Any]:
        modules = list(self._module.modules())
        tensors = [*self._module.parameters(), *self._module.buffers()]
        attributes = [[(name, picture(value)) for name, value in own(one)] for one in modules]
        classes = [
            [(name, picture(value)) for name, value in vars(cls).items() if not callable(value)]
            for cls in user_classes(modules)
        ]
        return [
            [(id(tensor), version_of(tensor)) for tensor in tensors],
            [_content(tensor) for tensor in self._given],
            random_state(self._device),
            attributes,
            classes,
        ]

    def differences(self) -> list[tuple[str, bool]]:
        texts = [
            ("writes its buffers or parameters", False),
            ("writes into what it was given", True),
            ("draws random numbers", True),
            ("changes its attributes", False),
            ("changes attributes of its class", True),
        ]
        return [text for text, old, new in zip(texts, self._before, self._now(), strict=True) if old != new]
