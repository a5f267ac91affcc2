"""Frozen BatchNorm that saves no input for the backward pass.

In eval mode with frozen weight and bias, BatchNorm is `x * scale + shift` with constants per channel. Its gradient
needs `scale` but not `x`; torch saves `x` nevertheless. The class of a layer is replaced by a subclass of it, so its
`state_dict`, hooks and `isinstance` checks stay valid, and restored when the layer is released.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from lightning_freeze.model.layers import BatchNorm

_FORWARDS = (BatchNorm.forward, nn.SyncBatchNorm.forward)


class _Lean:
    """The mixin for the class of a layer."""

    _plain: type[BatchNorm]

    def forward(self: Any, input: Tensor) -> Tensor:  # torch's name
        if self.training or any(p is not None and p.requires_grad for p in (self.weight, self.bias)):
            return cast(Tensor, self._plain.forward(self, input))  # the user's own replacement stays
        self._check_input_dim(input)
        scale, shift = _affine(self)
        channels = (-1, *[1] * (input.dim() - 2))
        return torch.addcmul(shift.view(channels), input, scale.view(channels)).to(input.dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        rebuild, arguments, *rest = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        if arguments and arguments[0] is type(self):  # pickle cannot find the subclass
            rebuild, arguments = _rebuild, (self._plain, rebuild, *arguments[1:])
        return (rebuild, arguments, *rest)


@torch.no_grad()
def _affine(layer: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, in float32 or wider, as torch computes them for narrower dtypes."""
    dtype = torch.promote_types(layer.running_var.dtype, torch.float32)
    scale = torch.rsqrt(layer.running_var.to(dtype) + layer.eps)
    if layer.weight is not None:
        scale = scale * layer.weight
    shift = -layer.running_mean.to(dtype) * scale
    return scale, shift if layer.bias is None else shift + layer.bias


def _rebuild(plain: type[BatchNorm], rebuild: Any, *arguments: Any) -> Any:
    return rebuild(_lean_class(cast(Any, plain)), *arguments)


@cache
def _lean_class(plain: Any) -> Any:
    same = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {"_plain": plain, **same}
    return type(plain.__name__, (_Lean, plain), body)


def can_be_lean(module: nn.Module) -> bool:
    """Whether it is a BatchNorm with running statistics and torch's own forward."""
    return (
        isinstance(module, BatchNorm)
        and not isinstance(module, LazyModuleMixin)
        and module.running_mean is not None
        and module.running_var is not None
        and "forward" not in vars(module)
        and (is_lean(module) or type(module).forward in _FORWARDS)
    )


def is_lean(module: nn.Module) -> bool:
    """Whether its class is replaced."""
    return isinstance(module, _Lean)


def make_lean(module: nn.Module) -> None:
    """Replace the class of a layer by one that saves no input; other modules are left unchanged.

    Examples:
        >>> layer = nn.BatchNorm2d(3).eval().requires_grad_(False)
        >>> make_lean(layer)
        >>> isinstance(layer, nn.BatchNorm2d), is_lean(layer)
        (True, True)
        >>> make_plain(layer)
        >>> type(layer) is nn.BatchNorm2d
        True
    """
    if can_be_lean(module) and not is_lean(module):
        module.__class__ = _lean_class(cast(Any, type(module)))


def make_plain(module: nn.Module) -> None:
    """Restore the class of a layer."""
    if "_plain" in vars(type(module)) and isinstance(module, _Lean):
        module.__class__ = type(module)._plain  # type: ignore[assignment]
