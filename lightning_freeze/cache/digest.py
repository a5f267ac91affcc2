"""A digest of everything that decides the values of rows besides their input. It is the same in every process.

It covers the bits of weights and buffers; structure, settings and code of modules; the chain of operations with their
constants; settings of torch; and the versions and devices that decide bits.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import platform
import sys
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.conditions import settings
from lightning_freeze.cache.graph import Kind
from lightning_freeze.cache.parts import Part
from lightning_freeze.cache.seal import own, version_of
from lightning_freeze.cache.trees import Same
from lightning_freeze.model.fingerprint import hashes_of

_FORMAT = 1  # version of the format; rows of other versions are not found
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.layout)
_BUILTIN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.GetSetDescriptorType,
)
_HELD = (*_PLAIN, tuple, list, dict, set, Tensor)
_KNOWN = ("torch", "builtins", "typing", "collections", "abc", "functools", "enum")  # versions are in it


class Unstable(Exception):
    """A value that cannot be compared between processes."""


def digest(*things: Any, states: dict[tuple[Any, ...], str] | None = None) -> str:
    """The digest of values, as 32 hexadecimal digits.

    Args:
        things: kinds, modules, tensors, functions and plain values.
        states: known digests of the states of parts; new ones are added. They are valid for one moment.

    Raises:
        Unstable: a value cannot be compared between processes.

    Examples:
        >>> digest(1, [2.0, {"a": torch.ones(2)}]) == digest(1, [2.0, {"a": torch.ones(2)}])
        True
        >>> digest(nn.ReLU()) == digest(nn.ReLU(inplace=True))
        False
    """
    made = _Digest({} if states is None else states)
    try:
        made.add((_FORMAT, _versions(), settings(), things))
    except RecursionError:
        raise Unstable("it is nested too deeply") from None
    return made.hash.hexdigest()


@functools.cache
def _versions() -> tuple[Any, ...]:
    """The versions and devices that decide bits."""
    gpus = {torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())}
    return torch.__version__, torch.__config__.show(), sys.version_info[:3], _processor(), sorted(gpus)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith("model name")), platform.processor())


class _Digest:
    """A running digest."""

    def __init__(self, states: dict[tuple[Any, ...], str]) -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self._states = states
        self._seen: dict[int, tuple[int, Any]] = {}  # with the objects, so that their ids are not reused

    def text(self, *words: Any) -> None:
        for word in words:
            data = str(word).encode(errors="surrogatepass")
            self.hash.update(len(data).to_bytes(8, "little") + data)

    def add(self, value: Any) -> None:
        """Add a value.

        Raises:
            Unstable: see `digest`.
        """
        if isinstance(value, enum.Enum):
            self.text("enum", _name(type(value)), value.name)
        elif isinstance(value, _PLAIN):
            self.text(type(value).__name__, repr(value))
        elif isinstance(value, torch.device):
            self.text("device", value.type)
        elif isinstance(value, tuple):
            self._tuple(value)
        elif id(value) in self._seen:
            self.text("again", self._seen[id(value)][0])
        else:
            self._seen[id(value)] = len(self._seen), value
            self._new(value)

    def _new(self, value: Any) -> None:
        for kinds, take in _RULES:
            if isinstance(value, kinds):
                self.text(kinds[0].__name__)
                take(self, value)
                return
        if type(value).__module__ == "numpy":
            self.array(value)
        elif hasattr(value, "__dict__"):
            self.add(type(value))
            self.add(vars(value))
        elif type(value).__module__.partition(".")[0] in sys.stdlib_module_names and " at 0x" not in repr(value):
            self.text(_name(type(value)), repr(value))
        else:
            _refuse(value)

    def _tuple(self, value: tuple[Any, ...]) -> None:
        if value and isinstance(value[0], Part):
            self._part(*value)
        elif value and value[0] == "constant" and isinstance(value[1], Same):
            self._constant(*value[1:])
        else:
            self.text(_name(type(value)), len(value))
            for one in value:
                self.add(one)

    def _part(self, part: Part, token: int, grad: bool | None) -> None:
        """Add a module in the state with this token."""
        if (part, token) not in self._states:
            if not part.still(token):
                raise Unstable(f"'{part.name}' changes within a step")
            inner = _Digest({})
            inner.add([part.module, inner.unordered([*part.codes]), [one.now() for one in part.depends]])
            self._states[part, token] = inner.hash.hexdigest()
        self.text("part", self._states[part, token], grad)

    def _constant(self, base: Same, version: int, *rest: Any) -> None:
        if version_of(base.value) != version:
            raise Unstable("a constant was written")
        self.add(base.value)
        self.add(rest)

    # ---- by kind of value

    def tensor(self, value: Tensor) -> None:
        self.text(value.dtype, tuple(value.shape), value.stride() if value.layout == torch.strided else value.layout)
        self.text(value.device.type, hashes_of({"": value})[""])

    def array(self, value: Any) -> None:
        if value.dtype.hasobject:
            _refuse(value)
        self.text(value.dtype.str, value.shape, hashlib.blake2b(value.tobytes()).hexdigest())

    def items(self, value: Any) -> None:
        self.text(_name(type(value)), len(value))
        for one in value.items() if isinstance(value, dict) else value:
            self.add(one)

    def unordered(self, value: Any) -> list[str]:
        """The digests of items, in an order that does not depend on addresses."""
        found = []
        for one in value:
            made = _Digest({})
            made.add(one)
            found.append(made.hash.hexdigest())
        return sorted(found)

    def module(self, value: nn.Module) -> None:
        modules = dict(value.named_modules())
        tensors = {**dict(value.named_parameters()), **dict(value.named_buffers())}
        for name, hashed in hashes_of({name: one for name, one in tensors.items() if not one.is_meta}).items():
            one = tensors[name]
            self.text(name, hashed, one.dtype, one.device.type, one.layout)
            self.text(one.stride() if one.layout == torch.strided else None)
        for name, one in modules.items():
            self._seen.setdefault(id(one), (len(self._seen), one))
            self.text(name, one.training, one._buffers.keys(), one._parameters.keys())
            self.add(type(one))
            self.add(_own_forward(one))
        for name, one in modules.items():
            self.text(name)
            self.add(dict(own(one)))

    def function(self, value: Any) -> None:
        self.text(_name(value))
        if _is_known(value):
            return
        self.add(value.__code__)
        self.add([value.__defaults__, value.__kwdefaults__, [_content(cell) for cell in value.__closure__ or ()]])

    def code(self, value: types.CodeType) -> None:
        self.text(value.co_name, value.co_code.hex(), value.co_names, value.co_varnames, value.co_freevars)
        self.add(value.co_consts)

    def kind_of_class(self, value: type) -> None:
        self.text(_name(value))
        if _is_known(value):
            return
        for cls in value.__mro__:
            if not _is_known(cls):
                self.add({name: one for name, one in vars(cls).items() if _matters(name, one)})


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', type(value).__name__)}"


def _is_known(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in _KNOWN


def _matters(name: str, value: Any) -> bool:
    """Whether a class attribute can change what methods do. The effects of `__init__` are in the instance."""
    code = isinstance(value, types.FunctionType | property | classmethod | staticmethod)
    return name != "__init__" and (code or (not name.startswith("__") and isinstance(value, _HELD)))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _own_forward(module: nn.Module) -> Any:
    """The instance's own forward, if it has one; not the one that the cache sets during a step."""
    found = vars(module).get("forward")
    if isinstance(found, functools.partial) and str(found.func.__module__).startswith("lightning_freeze."):
        return found.args[2]
    return found


def _builtin(made: _Digest, value: Any) -> None:
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType | type):
        raise Unstable(f"{value!r} is bound to an object")
    made.text(_name(value), getattr(owner, "__name__", ""))


# The first type that matches is used; anything else is an object with attributes.
_RULES: list[tuple[tuple[Any, ...], Callable[[_Digest, Any], None]]] = [
    ((Kind,), lambda made, kind: made.add(kind.key)),
    ((Same,), lambda made, same: made.add(same.value)),
    ((Tensor,), _Digest.tensor),
    ((nn.Module,), _Digest.module),
    ((list, dict, deque), _Digest.items),
    ((set, frozenset), lambda made, values: made.text(*made.unordered(values))),
    ((slice,), lambda made, cut: made.add((cut.start, cut.stop, cut.step))),
    ((type,), _Digest.kind_of_class),
    ((types.CodeType,), _Digest.code),
    ((types.FunctionType,), _Digest.function),
    ((property,), lambda made, one: made.add((one.fget, one.fset))),
    ((classmethod, staticmethod), lambda made, one: made.add(one.__func__)),
    ((types.MethodType,), lambda made, method: made.add((method.__func__, method.__self__))),
    (_BUILTIN, _builtin),
    ((functools.partial,), lambda made, one: made.add((one.func, one.args, one.keywords))),
    ((types.ModuleType,), lambda made, module: made.text(module.__name__)),
    ((logging.Logger,), lambda made, logger: made.text(logger.name)),
    ((torch.Generator, types.GeneratorType), lambda made, one: _refuse(one)),
]


def _refuse(value: Any) -> None:
    raise Unstable(f"a {type(value).__name__} cannot be compared with one of another process")
