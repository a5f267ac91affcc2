"""The memory of each process per stage under DDP and FSDP2, in bytes. The model may be on the meta device.

Under DDP every process holds everything. FSDP2 shards each parameter along its first dimension into parts of
`ceil(rows / processes)` rows (torch.distributed.fsdp.fully_shard), with its gradients and optimizer state. The figures
are those of rank 0, which holds the largest part. Parameters gathered during forward and backward are not included,
nor are activations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_freeze.model.dtensors import is_sharded_tensor


@dataclass(frozen=True)
class Share:
    """The memory of one process between steps, in bytes.

    Attributes:
        weights: all parameters, trainable or not.
        gradients: gradients of trainable parameters.
        state: their optimizer state.
    """

    weights: float
    gradients: float
    state: float

    @property
    def total(self) -> float:
        """The sum of all three."""
        return self.weights + self.gradients + self.state


def rows_elements(shape: Sequence[int], world: int) -> int:
    """The number of elements on rank 0 of `world` of a tensor that FSDP2 shards along its first dimension.

    Examples:
        >>> rows_elements((9, 4), 2), rows_elements((), 2)
        (20, 1)
    """
    if not shape:
        return 1
    elements = -(-shape[0] // world)
    for size in shape[1:]:
        elements *= size
    return elements


def share(
    parameters: Mapping[str, Tensor],
    trainable: Collection[str],
    world: int,
    *,
    sharded: bool,
    state_each: float,
    bytes_each: int | None = None,
) -> Share:
    """The memory of one process.

    Args:
        parameters: name -> parameter; the shape of a DTensor is that of the whole tensor.
        trainable: names of the trainable parameters.
        world: number of processes.
        sharded: True: FSDP2; if only a part of the model is sharded, only that part is divided. False: DDP.
        state_each: bytes of optimizer state per byte of a parameter.
        bytes_each: bytes per element; None: from the parameter's dtype.
    """
    partly = any(map(is_sharded_tensor, parameters.values()))
    sizes = {}
    for name, parameter in parameters.items():
        cut = sharded and (not partly or is_sharded_tensor(parameter))
        elements = rows_elements(parameter.shape, world if cut else 1)
        sizes[name] = elements * (bytes_each or parameter.element_size())
    gradients = sum(sizes[name] for name in trainable)
    return Share(sum(sizes.values()), gradients, gradients * state_each)
