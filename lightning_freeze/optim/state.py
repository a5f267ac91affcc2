"""The optimizer state of one parameter: set it aside, move it to the host and back, create it anew."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

# Counters that LAMB, Adan and the schedule-free optimizers keep per group. They stand still while a slot is empty.
COUNTERS = ("step", "k", "weight_sum", "lr_max")


# The optimizer state of a frozen parameter; for state on the host also the former device of each tensor.
Aside = tuple[dict[str, Any], list[str | None] | None]


_IMPLEMENTATIONS = ("fused", "foreach", "capturable")  # how a step is computed, not what


def fresh_optimizer(
    optimizer: Optimizer, parameter: nn.Parameter, changed: Mapping[str, Any] | None = None
) -> Optimizer | None:
    """Make an optimizer of the same class and options for one parameter; None if its constructor needs more.

    Args:
        optimizer: any optimizer; it is not modified.
        parameter: the only parameter of the new optimizer.
        changed: option -> value that replaces the optimizer's.

    Raises:
        ValueError: the optimizer refuses the parameter; Muon, for example, takes matrices only.
    """
    takes = inspect.signature(type(optimizer)).parameters.values()
    names = {parameter.name for parameter in takes}
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes)
    wanted = optimizer.defaults | dict(changed or {})
    options = {key: value for key, value in wanted.items() if any_name or key in names}
    try:
        return type(optimizer)([parameter], **options)
    except TypeError:
        return None


def state_after_step(optimizer: Optimizer, dtype: torch.dtype = torch.float32) -> dict[str, Any] | None:
    """The state of a parameter after one step, from a step of a similar optimizer on the CPU.

    Args:
        optimizer: any optimizer; it is not modified.
        dtype: dtype of the trial parameter, which has 24 elements.

    Returns:
        The state; None if a similar optimizer cannot be made, or cannot step with such a parameter.
    """
    probe = nn.Parameter(torch.zeros(4, 6, dtype=dtype))
    try:
        like = fresh_optimizer(optimizer, probe)
        if like is None:
            return None
        names = ("params", "param_names", *_IMPLEMENTATIONS)
        like.param_groups[0].update({k: v for k, v in optimizer.param_groups[0].items() if k not in names})
        like.param_groups[0].update({key: False for key in _IMPLEMENTATIONS if key in like.param_groups[0]})
        probe.grad = torch.ones_like(probe)
        like.step()
    except Exception:  # sparse gradients only, or a step that needs what only the real run has
        return None
    return dict(like.state[probe])


def set_counters(group: dict[str, Any], counters: Mapping[str, Any] | None) -> None:
    """Restore the counters of a group; None changes nothing."""
    if counters is not None:
        for key in COUNTERS:
            group.pop(key, None)
        group.update(copy.deepcopy(dict(counters)))


def _devices(state: Mapping[str, Any]) -> list[str | None]:
    return [leaf.device.type if isinstance(leaf, Tensor) else None for leaf in tree_flatten(state)[0]]


def to_host(state: dict[str, Any]) -> Aside:
    """Copy the state to host memory, and return it with the former device of each tensor."""
    return tree_map_only(Tensor, Tensor.cpu, state), _devices(state)


def from_host(state: dict[str, Any], devices: list[str | None] | None, device: torch.device) -> dict[str, Any]:
    """Copy state back to the device of its parameter, except counters that have always been on the host."""
    if devices is None:
        return state
    leaves, spec = tree_flatten(state)
    moved = [
        leaf if before is None else leaf.to("cpu" if before == "cpu" else device)
        for leaf, before in zip(leaves, devices, strict=True)
    ]
    return tree_unflatten(moved, spec)  # type: ignore[no-any-return]


def aside_record(state: dict[str, Any], devices: list[str | None] | None) -> dict[str, Any]:
    """The part of a checkpoint that holds state set aside."""
    return {"state": state, "devices": devices or _devices(state), "on_host": devices is not None}
