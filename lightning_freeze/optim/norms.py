"""Norms of weights, gradients and optimizer state per slot, computed on their device without waiting for it.

With FSDP2 each rank sums up its shards, and a single reduction adds the sums of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_freeze.model.dtensors import local_part


def gradient_scale(optimizer: Optimizer) -> Any:
    """The factor in the gradients: with a GradScaler, a fused optimizer unscales them itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor; the values of a sparse tensor."""
    parts = [local_part(tensor) for tensor in tensors]
    return [part.coalesce().values() if part.is_sparse else part for part in parts]


def shares(parameters: Sequence[Tensor]) -> list[float]:
    """The weight of this rank's part of each parameter, so that a sum over ranks counts each element once.

    Without sharded parameters there is no sum over ranks, and each weight is 1.
    """
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return [1.0] * len(parameters)
    return [1 / _copies(parameter) for parameter in parameters]


def _copies(tensor: Tensor) -> int:
    """The number of ranks that hold the same part."""
    if not isinstance(tensor, DTensor):
        return dist.get_world_size()
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_replicate())


def totals(tensors: list[Tensor], lengths: tuple[int, ...], weights: Sequence[Any], power: int) -> Tensor:
    """The weighted sum of |element| ** power over the tensors of each group, shape `[groups]`, on this rank.

    Args:
        tensors: local tensors, at least one, those of a group side by side.
        lengths: the number of tensors in each group.
        weights: of each tensor, numbers or 0-dim tensors, such as those from `shares`.
        power: 1 or 2.
    """
    exact = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    found = torch._foreach_norm(tensors, power, dtype=None if exact == torch.float64 else exact)
    alike = all(norm.device == found[0].device and norm.dtype == exact for norm in found)
    norms = torch.stack(found if alike else [norm.to(tensors[0].device, exact) for norm in found])
    sums = norms if power == 1 else norms.square()
    if any(isinstance(weight, Tensor) for weight in weights):
        sums = sums * torch.stack([torch.as_tensor(weight, dtype=exact, device=sums.device) for weight in weights])
    elif weights[0] != 1.0 or weights.count(weights[0]) != len(weights):
        sums = sums * sums.new_tensor(weights)
    return by_group(sums, lengths)


def by_group(values: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The sum of the values of each group, shape `[groups]`, in a fixed order; 0 for a group without values.

    Args:
        values: shape `[tensors]`, those of a group side by side.
        lengths: the number of values in each group.
    """
    rows = values.new_zeros(len(lengths), max(lengths))
    rows.view(-1)[_places(lengths, values.device)] = values
    return rows.sum(1)


@lru_cache(maxsize=16)
def _places(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each value goes in a matrix with a row for each group."""
    width = max(lengths)
    return torch.tensor([row * width + k for row, length in enumerate(lengths) for k in range(length)], device=device)


def reduced(figures: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Add values up over ranks if any parameter is sharded. This is a collective, with one reduction."""
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        dist.all_reduce(figures)
    return figures


def square_norms(optimizer: Optimizer) -> Tensor:
    """The squared gradient norm of each group, shape `[groups]`, unscaled, on the device; 0 without a gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    having = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    moving = [p for group in having for p in group]
    if moving:
        squares = totals(local([p.grad for p in moving]), tuple(map(len, having)), shares(moving), 2)
    else:
        squares = torch.zeros(len(having))
    found: Tensor = reduced(squares, parameters) / gradient_scale(optimizer) ** 2
    return found
