"""The memory of each process per stage under DDP and FSDP2, in bytes. The model may be on the meta device.

Under DDP every process holds everything. FSDP2 shards each parameter along its first dimension into parts of
`ceil(rows / processes)` rows (torch.distributed.fsdp.fully_shard), with its gradients and optimizer state. The figures
are those of rank 0, which holds the largest part. Parameters gathered during forward and backward are not included.
Every process has its own batch, so activations are the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.errors import FreezeError
from lightning_freeze.model.dtensors import is_sharded_tensor
from lightning_freeze.optim.state import state_after_step
from lightning_freeze.preview.activations import activations, checkpointed

_PROBE_ELEMENTS = 24  # of `state_after_step`


@dataclass(frozen=True)
class Share:
    """The memory of one process, in bytes.

    Attributes:
        weights: all parameters, trainable or not.
        gradients: gradients of trainable parameters.
        state: their optimizer state.
        activations: what a step needs beside these (see `preview.activations`); None: unknown.
        checkpointed: the same with gradient checkpointing; None: unknown, or the model has no such option.
    """

    weights: float
    gradients: float
    state: float
    activations: float | None = None
    checkpointed: float | None = None

    @property
    def total(self) -> float:
        """The sum of weights, gradients, state and activations as far as they are known."""
        return self.weights + self.gradients + self.state + (self.activations or 0.0)


ROWS = ("weights", "gradients", "state", "activations", "checkpointed", "total")
OPTIONAL = ("activations", "checkpointed")
Shares = dict[tuple[int, bool], dict[int, Share]]


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


class MemoryPlan:
    """The memory of one process in each state of a run, for several numbers of processes.

    Args:
        worlds: numbers of processes.
        bytes_each: bytes per element in the config's precision; None: as in the model.
        module: the LightningModule.
        batch: a batch of its training data; None: activations stay unknown.
        remarks: a list that remarks are added to.

    Attributes:
        shares: (processes, whether sharded) -> trainable elements -> memory of one process.
    """

    def __init__(
        self, worlds: Sequence[int], bytes_each: int | None, module: Any, batch: Any, remarks: list[str]
    ) -> None:
        self.worlds, self.bytes_each, self.module, self.batch, self.remarks = worlds, bytes_each, module, batch, remarks
        self.shares: Shares = {}
        self._activations: dict[Any, tuple[float | None, float | None]] = {}

    def add(self, run: Reconciler) -> None:
        """Record the memory of the current state of a run."""
        parameters = run.index.parameters
        dtype = next(iter(parameters.values())).dtype
        try:
            state = max(state_per_element(slotted.optimizer, dtype) for slotted in run.optimizers) / dtype.itemsize
        except FreezeError as error:
            state = 0.0
            self.remarks.append(f"Optimizer state is counted as none: {error}")
        trainable = sum(parameters[name].numel() for name in run.trainable)
        known = run.trainable, run.view.held
        if known not in self._activations:
            self._activations[known] = self._measure(dtype)
        plain, less = self._activations[known]
        for world, sharded in [(world, sharded) for world in self.worlds for sharded in (False, True)]:
            now = share(parameters, run.trainable, world, sharded=sharded, state_each=state, bytes_each=self.bytes_each)
            now = replace(now, activations=plain, checkpointed=less)
            before = self.shares.setdefault((world, sharded), {}).get(trainable, now)
            self.shares[world, sharded][trainable] = max(now, before, key=lambda one: one.total)

    def _measure(self, dtype: torch.dtype) -> tuple[float | None, float | None]:
        if self.batch is None:
            return None, None
        scale = self.bytes_each / dtype.itemsize if self.bytes_each else 1.0
        try:
            plain = scale * activations(self.module, self.batch)
            with checkpointed(self.module) as possible:
                return plain, scale * activations(self.module, self.batch) if possible else None
        except Exception as error:  # any code of the user's, on a device that it was not written for
            self.batch = None
            self.remarks.append(
                f"Activations are unknown: training_step fails on the meta device ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no message'})."
            )
            return None, None


def state_per_element(optimizer: Any, dtype: torch.dtype) -> float:
    """The bytes of optimizer state per element of a parameter.

    Raises:
        FreezeError: a similar optimizer cannot be made, for example because of its constructor.
    """
    state = state_after_step(optimizer, dtype)
    if state is None:
        raise FreezeError(f"{type(optimizer).__name__}: the size of its state is not known")
    tensors = [value for value in state.values() if isinstance(value, Tensor) and value.dim()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / _PROBE_ELEMENTS
