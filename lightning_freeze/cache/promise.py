"""A tensor whose values are not there: what a module of a cached prefix returns while its work is skipped.

Nothing may come of it but what came in the recorded step: each function that meets a promise has to be the next one
of the recording. Whatever reads a value, takes another way, or lets it flow past the boundary is noticed at once.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_freeze.errors import FreezeError

_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_leaf", "grad_fn", "grad", "names")
_FLAGS = ("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized", "is_nested", "is_mps", "is_xpu", "is_mkldnn")
_METHODS = ("size", "dim", "numel", "nelement", "ndimension", "__len__", "is_floating_point", "is_complex")


def _facts() -> set[Any]:
    """The functions that ask for no value: shape, dtype and the like."""
    found = {getattr(Tensor, name) for name in (*_METHODS, "element_size", "get_device", "is_signed", "is_inference")}
    for name in (*_ATTRIBUTES, *_FLAGS):
        with contextlib.suppress(AttributeError):
            found.add(getattr(Tensor, name).__get__)
    return found | {torch.is_tensor, torch.is_floating_point, torch.is_complex, torch.numel}


FACTS = _facts()


class Diverged(FreezeError):
    """A step does not do what the recorded one did."""


class Follower(Protocol):
    """Who knows what may be done with a promise."""

    def meet(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What a function of promises returns.

        Raises:
            Diverged: it was not met in the recording.
        """


class Promise(Tensor):
    """Right shape, dtype and device, no values, and no memory for them."""

    follower: Follower

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return _first(args, kwargs).follower.meet(func, args, kwargs)


def _first(args: Any, kwargs: Any) -> Promise:
    pending = [args, kwargs]
    while pending:
        one = pending.pop()
        if isinstance(one, Promise):
            return one
        if isinstance(one, list | tuple):
            pending.extend(one)
        elif isinstance(one, dict):
            pending.extend(one.values())
    raise Diverged("a promise met a function in an argument that is no list, tuple or dict")


def promise(shape: Any, dtype: torch.dtype, device: torch.device, follower: Follower) -> Promise:
    """A promise of a tensor."""
    value = float("nan") if dtype.is_floating_point or dtype.is_complex else 0
    made = torch.full((), value, dtype=dtype, device=device).expand(shape).as_subclass(Promise)
    made.follower = follower
    return made
