"""Norms of weights, gradients and optimizer state per slot, computed on their device without waiting for it.

With FSDP2 each rank sums up its shards, and a single reduction adds the sums of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def totals(groups: Sequence[Sequence[Tensor]], weights: Sequence[Sequence[float]], power: int) -> Tensor:
    """The weighted sum of |element| ** power over the tensors of each group, shape `[groups]`, on this rank.

    Args:
        groups: local tensors, at least one in total.
        weights: the weights from `shares`.
        power: 1 or 2.
    """
    flat = [tensor for group in groups for tensor in group]
    exact = torch.float64 if flat[0].dtype == torch.float64 else torch.float32
    found = torch._foreach_norm(flat, power, dtype=None if exact == torch.float64 else exact)
    norms = torch.stack([norm.to(flat[0].device, exact) for norm in found])
    sums = norms if power == 1 else norms.square()
    counts = [count for each in weights for count in each]
    if set(counts) != {1.0}:
        sums = sums * sums.new_tensor(counts)
    return torch.stack([part.sum() for part in torch.split(sums, [len(group) for group in groups])])


def reduced(figures: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Add values up over ranks if any parameter is sharded. This is a collective, with one reduction."""
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        dist.all_reduce(figures)
    return figures


def square_norms(optimizer: Optimizer) -> Tensor:
    """The squared gradient norm of each group, shape `[groups]`, unscaled, on the device; 0 without a gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    if any(groups):
        squares = totals(
            [local([p.grad for p in having]) for having in groups], [shares(having) for having in groups], 2
        )
    else:
        squares = torch.zeros(len(groups))
    found: Tensor = reduced(squares, parameters) / gradient_scale(optimizer) ** 2
    return found
