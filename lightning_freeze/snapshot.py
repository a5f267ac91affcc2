"""The weights of a good moment, with the optimizer state that belongs to them, to come back to."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from lightning_freeze.groups import SlottedOptimizer
from lightning_freeze.selection import ModelIndex
from lightning_freeze.sharding import cut_like


def take(index: ModelIndex, trainable: Collection[str], optimizers: Sequence[SlottedOptimizer]) -> dict[str, Any]:
    """Copy the trainable parameters, all buffers, and the optimizer state of those parameters."""
    return {
        # sorted: where a checkpoint gathers what ranks hold in parts, they have to go through it alike
        "parameters": {name: index.parameters[name].detach().clone() for name in sorted(trainable)},
        "buffers": {name: buffer.detach().clone() for name, buffer in index.buffers.items()},
        "optimizers": [
            {
                name: copy.deepcopy(slotted.optimizer.state[parameter])
                for name, parameter in slotted.parameters.items()
                if name in trainable and parameter in slotted.optimizer.state
            }
            for slotted in optimizers
        ],
    }


@torch.no_grad()
def bring_back(snapshot: Mapping[str, Any], index: ModelIndex, optimizers: Sequence[SlottedOptimizer]) -> None:
    """Write a snapshot back, in place. A parameter that had no optimizer state then has none afterwards."""
    for name, value in snapshot["parameters"].items():
        parameter = index.parameters[name]
        parameter.copy_(cut_like(value, parameter))
    buffers = index.buffers
    for name, value in snapshot["buffers"].items():
        buffers[name].copy_(value)
    for slotted, states in zip(optimizers, snapshot["optimizers"], strict=True):
        for name, parameter in slotted.parameters.items():
            if name in states:
                slotted.optimizer.state[parameter] = _on_device(states[name], parameter)
            elif name in snapshot["parameters"]:
                slotted.optimizer.state.pop(parameter, None)


def _on_device(state: Mapping[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
    """A copy of a parameter's state; counters (0-dim) stay where the optimizer keeps them."""
    return {
        key: cut_like(value.clone().to(parameter.device if value.dim() else value.device), parameter)
        if isinstance(value, torch.Tensor)
        else copy.deepcopy(value)
        for key, value in state.items()
    }
