"""Bytes that each process holds, stage by stage, under DDP and FSDP2: of a model that may be on the meta device.

Under DDP every process holds everything. FSDP2 cuts each parameter along its first dimension into parts of
`ceil(rows / processes)` rows (torch.distributed.fsdp.fully_shard); gradients and optimizer state follow it. Counted is
rank 0, which holds the largest part. What a group gathers for its forward and backward pass is not counted, nor are
activations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_freeze.model.dtensors import is_sharded_tensor


@dataclass(frozen=True)
class Share:
    """What one process holds between steps, in bytes.

    Attributes:
        weights: of all parameters, trainable or not.
        gradients: of trainable parameters.
        state: of their optimizer state.
    """

    weights: float
    gradients: float
    state: float

    @property
    def total(self) -> float:
        """All three."""
        return self.weights + self.gradients + self.state


def rows_elements(shape: Sequence[int], world: int) -> int:
    """Elements that rank 0 of `world` holds of a tensor that FSDP2 cuts along its first dimension.

    Example:
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
    """What one process holds.

    Args:
        parameters: name -> parameter; the shape of a DTensor is that of the whole.
        trainable: names of those that train.
        world: number of processes.
        sharded: True: FSDP2; where the model is sharded in part, only that part is cut. False: DDP.
        state_each: bytes of optimizer state per byte of a parameter.
        bytes_each: of an element; None: as the parameter has it.
    """
    partly = any(map(is_sharded_tensor, parameters.values()))
    sizes = {}
    for name, parameter in parameters.items():
        cut = sharded and (not partly or is_sharded_tensor(parameter))
        elements = rows_elements(parameter.shape, world if cut else 1)
        sizes[name] = elements * (bytes_each or parameter.element_size())
    gradients = sum(sizes[name] for name in trainable)
    return Share(sum(sizes.values()), gradients, gradients * state_each)
