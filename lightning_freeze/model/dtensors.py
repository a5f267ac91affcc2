"""Convert between DTensors, of which each rank holds a shard, and the whole tensors of a checkpoint.

FSDP2 (`fully_shard`) and tensor parallelism keep parameters and optimizer state as DTensors. This package saves whole
tensors: it gathers shards when it saves and distributes them again when it loads. So a run can be resumed with
another number of processes.
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
    """Replace the DTensors of a tree by whole tensors in host memory on rank 0, and by empty tensors on other ranks.

    This is a collective: all ranks call it with equal trees, in the same order.
    """
    return tree_map_only(DTensor, _whole, tree)


def _whole(tensor: DTensor) -> Tensor:
    # Ranks exchange tensors on the mesh's device; optimizer state may have been moved to the host.
    whole: Tensor = tensor.to(tensor.device_mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    return whole.cpu() if torch.distributed.get_rank() == 0 else whole.new_empty(0, device="cpu")


def cut_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Distribute a whole tensor as `parameter` is distributed.

    A tensor of the parameter's shape gets its placements; a tensor of another shape is replicated on all ranks.
    Returned unchanged: 0-dimensional tensors, DTensors, and any value if `parameter` is not a DTensor.
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
    """The part of a tensor that this rank holds: the shard of a DTensor, else the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reshard(modules: Iterable[nn.Module]) -> None:
    """Make FSDP2 gather its parameters again at the next forward, with their current values and flags.

    After a forward without backward, as in validation, the root's parameters stay gathered. The next forward would
    use these old copies, and a parameter that has been unfrozen since would get no gradient in its first step.
    """
    for module in modules:
        module.reshard()  # type: ignore[operator]
