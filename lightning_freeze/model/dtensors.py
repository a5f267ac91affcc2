"""Parameters that are DTensors: each rank holds a part of them, a checkpoint holds the whole.

FSDP2 (`fully_shard`) and tensor parallelism keep parameters and optimizer state as DTensors. What this package puts
into a checkpoint is plain tensors, so it is gathered on the way out and cut to each rank's part on the way in: a
run may go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.utils._pytree import tree_map_only


def gathered(tree: Any) -> Any:
    """The same with whole tensors in host memory in place of DTensors: on rank 0, which writes them; empty on others.

    A collective: all ranks call it with equal trees, in equal order.
    """
    return tree_map_only(DTensor, _whole, tree)


def _whole(tensor: DTensor) -> Tensor:
    # state that was moved to the host has to go where the ranks can exchange it
    whole: Tensor = tensor.to(tensor.device_mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    return whole.cpu() if torch.distributed.get_rank() == 0 else whole.new_empty(0, device="cpu")


def cut_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as the DTensor that belongs to `parameter`: of its shape, placed as it is; of another, a copy
    on each rank. Anything stays as it is when it is a number (0-dim), a DTensor, or the parameter is none.
    """
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor) or value.dim() == 0:
        return value
    mesh = parameter.device_mesh
    placements = parameter.placements if value.shape == parameter.shape else [Replicate()] * mesh.ndim
    return distribute_tensor(value.to(mesh.device_type), mesh, placements)


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to this module."""
    return isinstance(module, FSDPModule)


def is_sharded_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: of a DTensor its shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reshard(modules: Iterable[nn.Module]) -> None:
    """Let FSDP2 take its parameters up again, with the values and flags they have now.

    A forward without backward, as in validation, leaves those of the root whole: without this, the next forward
    would run on what was gathered before, and what has begun to train would get no gradient in its first step.
    """
    for module in modules:
        module.reshard()  # type: ignore[operator]
