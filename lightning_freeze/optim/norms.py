"""Figures of weights, gradients and optimizer state, slot by slot: on their device, without waiting for it.

With FSDP2 each rank adds up its part of a tensor, and one reduction of all figures makes the whole.
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
    """What the gradients are multiplied with: a GradScaler leaves it to a fused optimizer to divide by it."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor; of a sparse one, its values."""
    parts = [local_part(tensor) for tensor in tensors]
    return [part.coalesce().values() if part.is_sparse else part for part in parts]


def shares(parameters: Sequence[Tensor]) -> list[float]:
    """What the part of each parameter on this rank counts, so that adding up over ranks counts each element once.

    Where none is in parts, nothing is added up, and each counts whole.
    """
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return [1.0] * len(parameters)
    return [1 / _copies(parameter) for parameter in parameters]


def _copies(tensor: Tensor) -> int:
    """On how many ranks the same part is."""
    if not isinstance(tensor, DTensor):
        return dist.get_world_size()
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_replicate())


def total(tensors: Sequence[Tensor], weights: Sequence[float], power: int) -> Tensor:
    """The sum of |element| ** power over tensors, each weighted, as one number on their device; of one rank's parts.

    Args:
        tensors: local ones, at least one.
        weights: of `shares`.
        power: 1 or 2.
    """
    exact = None if tensors[0].dtype == torch.float64 else torch.float32
    found = torch._foreach_norm(list(tensors), power, dtype=exact)
    norms = torch.stack([norm.to(tensors[0].device, exact) for norm in found])
    sums = norms if power == 1 else norms.square()
    if set(weights) != {1.0}:
        sums = sums * sums.new_tensor(weights)
    return sums.sum()


def reduced(figures: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Figures of parts, added up over ranks where any parameter is in parts: one reduction, on all ranks."""
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        dist.all_reduce(figures)
    return figures


def square_norms(optimizer: Optimizer) -> Tensor:
    """The squared norm of the gradient of each group `[groups]`, 0 for one without; unscaled; on the device."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    weights = dict(zip(parameters, shares(parameters), strict=True))
    device = next((p.device for p in parameters if p.grad is not None), torch.device("cpu"))
    figures = []
    for group in optimizer.param_groups:
        having = [p for p in group["params"] if p.grad is not None]
        gradients = local([p.grad for p in having])
        found = total(gradients, [weights[p] for p in having], 2) if having else torch.zeros(())
        figures.append(found.to(device, non_blocking=True))
    squares: Tensor = reduced(torch.stack(figures), parameters) / gradient_scale(optimizer) ** 2
    return squares
