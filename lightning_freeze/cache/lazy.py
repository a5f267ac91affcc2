"""A tensor that stands for the result of an operation: facts are known, values exist or are computed when needed.

It lives within one step. When its values are needed, the object itself becomes a plain tensor. So a tensor that was
handed out, kept in a list or is about to be written is an ordinary tensor from then on.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_leaf", "grad_fn", "names")
_FLAGS = ("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized", "is_nested", "is_mps", "is_xpu", "is_mkldnn")
_METHODS = [
    "size",
    "dim",
    "numel",
    "nelement",
    "ndimension",
    "__len__",
    "is_floating_point",
    "is_complex",
    "element_size",
    "get_device",
    "is_signed",
    "is_inference",
    "stride",
    "is_contiguous",
    "__hash__",
    "is_conj",
    "is_neg",
]


def _facts() -> set[Any]:
    """The functions that ask for no value: shape, dtype and the like."""
    found = {getattr(Tensor, name) for name in _METHODS}
    for name in (*_ATTRIBUTES, *_FLAGS):
        with contextlib.suppress(AttributeError):
            found.add(getattr(Tensor, name).__get__)
    return found | {torch.is_tensor, torch.is_floating_point, torch.is_complex, torch.numel}


FACTS = _facts()


class Meeting(Protocol):
    """The interface of the step that a lazy tensor was made in."""

    def meet(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function with a lazy argument."""

    def value(self, lazy: Lazy) -> Tensor:
        """The values of a lazy tensor."""

    def make_real(self, lazy: Lazy) -> None:
        """Turn a lazy tensor into a plain one."""


class Lazy(Tensor):
    """A lazy tensor.

    Attributes:
        node: the result of the operation; None: the tensor has become plain, and this object refers to it.
        held: its values, if they exist.
        step: the step that it belongs to.
        meet, plain: how functions with this argument are handled.
    """

    node: Any
    held: Tensor | None
    step: Meeting
    meet: Callable[..., Any]
    plain: Callable[..., Any]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return Lazy.meet(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch itself calls it as a class method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Handle calls from C++, vmap or compiled functions."""
        for one in lazies((args, kwargs)):
            if one.node is not None and one.is_inference():
                one.node.version = -1  # it may be written, which torch does not count
        return func(*Lazy.plain(args), **Lazy.plain(kwargs or {}))


def _meet(func: Any, args: Any, kwargs: Any) -> Any:
    lazy = first_lazy((args, kwargs))
    if lazy is None:  # inside an opaque object; C++ will request the values
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    return lazy.step.meet(func, args, kwargs)


def plain(tree: Any) -> Any:
    """Replace lazy tensors by their values."""
    if isinstance(tree, Lazy):
        return tree.step.value(tree)
    if isinstance(tree, list | tuple):
        return type(tree)([plain(part) for part in tree])
    return {key: plain(part) for key, part in tree.items()} if isinstance(tree, dict) else tree


def spare_from_compiler() -> None:
    """Prevent a compiled function with a lazy argument from compiling our handler."""
    if "torch._dynamo" in sys.modules and Lazy.meet is _meet:  # imported by whoever compiles
        Lazy.meet = staticmethod(torch.compiler.disable(_meet))  # type: ignore[no-untyped-call]
        Lazy.plain = staticmethod(torch.compiler.disable(plain))  # type: ignore[no-untyped-call]


Lazy.meet, Lazy.plain = staticmethod(_meet), staticmethod(plain)


def first_lazy(tree: Any) -> Lazy | None:
    """The first lazy tensor in nested lists, tuples and dicts; None if there is none."""
    return next(iter(lazies(tree)), None)


def lazies(tree: Any) -> list[Lazy]:
    """The lazy tensors in nested lists, tuples and dicts."""
    found: list[Lazy] = []
    pending = [tree]
    while pending:
        one = pending.pop()
        if isinstance(one, Lazy):
            found.append(one)
        elif isinstance(one, list | tuple):
            pending.extend(one)
        elif isinstance(one, dict):
            pending.extend(one.values())
    return found


def make_lazy(facts: Any, node: Any, held: Tensor | None, step: Meeting) -> Lazy:
    """A lazy tensor with the shape, strides, dtype and device of `facts`."""
    made: Lazy = Tensor._make_wrapper_subclass(
        Lazy, facts.shape, strides=facts.stride, dtype=facts.dtype, device=facts.device
    )
    made.node, made.held, made.step = node, held, step
    return made


def become(lazy: Lazy, value: Tensor) -> None:
    """Turn the lazy object into a plain tensor with these values; the object of the values then refers to it."""
    step = lazy.step
    for name in ("node", "held", "step"):
        del lazy.__dict__[name]
    lazy.__class__ = Tensor  # type: ignore[assignment]
    torch._C._swap_tensor_impl(lazy, value)
    value.__class__ = Lazy
    value.__dict__.update(node=None, held=lazy, step=step)
