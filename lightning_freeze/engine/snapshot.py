"""Snapshots of weights and optimizer state that can be restored later."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from lightning_freeze.model.dtensors import cut_like
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.optim.slotted import SlottedOptimizer


def take(index: ModelIndex, names: Collection[str], optimizers: Sequence[SlottedOptimizer]) -> dict[str, Any]:
    """Copy these parameters, all buffers, and the optimizer state of these parameters, even if it is set aside."""
    return {
        # sorted: ranks that gather sharded parameters for a checkpoint must use the same order
        "parameters": {name: index.parameters[name].detach().clone() for name in sorted(names)},
        "buffers": {name: buffer.detach().clone() for name, buffer in index.buffers.items()},
        "optimizers": [
            {
                name: copy.deepcopy(state)
                for name in slotted.parameters
                if name in names and (state := slotted.state_of(name)) is not None
            }
            for slotted in optimizers
        ],
    }


@torch.no_grad()
def restore(snapshot: Mapping[str, Any], index: ModelIndex, optimizers: Sequence[SlottedOptimizer]) -> None:
    """Restore a snapshot in place. A parameter without optimizer state in the snapshot has none afterwards."""
    for name, value in snapshot["parameters"].items():
        parameter = index.parameters[name]
        parameter.copy_(cut_like(value, parameter))
    for name, value in snapshot["buffers"].items():
        module, leaf = index.buffer_places[name]
        buffer = module._buffers.get(leaf)
        if buffer is not None and buffer.shape == value.shape and _is_writable(buffer):
            buffer.copy_(value)
        else:
            module._buffers[leaf] = value.to(value.device if buffer is None else buffer.device, copy=True)
    for slotted, states in zip(optimizers, snapshot["optimizers"], strict=True):
        for name, parameter in slotted.parameters.items():
            if name in snapshot["parameters"]:
                slotted.set_state(name, _on_device(states[name], parameter) if name in states else None)


def _is_writable(buffer: torch.Tensor) -> bool:
    """Whether a buffer can be written: not an inference tensor, not expanded."""
    if buffer.is_inference() or buffer.layout != torch.strided:
        return not buffer.is_inference()
    return not any(size > 1 and stride == 0 for size, stride in zip(buffer.shape, buffer.stride(), strict=True))


def _on_device(state: Mapping[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
    """Copy a parameter's state to its device; counters (0-dim) stay on their device."""
    return {
        key: cut_like(value.clone().to(parameter.device if value.dim() else value.device), parameter)
        if isinstance(value, torch.Tensor)
        else copy.deepcopy(value)
        for key, value in state.items()
    }
