"""Support for Lightning Fabric: its wrappers, and how its strategies save and load.

Classes are recognised by name and attributes: `lightning.fabric` is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_freeze.errors import UnsupportedStrategyError
from lightning_freeze.optim.slotted import SlottedOptimizer
from lightning_freeze.trainer.fsdp_checkpoints import peek


class Stateful(Protocol):
    """The base class by which `fabric.save` and `fabric.load` recognise objects with state."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def strategy_of(module: nn.Module) -> Any | None:
    """The strategy of a module from `fabric.setup`; None for other modules."""
    return getattr(module, "_strategy", None) if _is_a(module, "_FabricModule") else None


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's module without the wrappers of Fabric, DDP and `torch.compile`."""
    if _is_a(module, "_FabricModule"):
        return unwrapped(module._forward_module)  # type: ignore[arg-type]
    if isinstance(module, DistributedDataParallel):
        return unwrapped(module.module)
    return unwrapped(module._orig_mod) if _is_a(module, "OptimizedModule") else module  # type: ignore[arg-type]


def unwrapped_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer without Fabric's wrapper."""
    return optimizer.optimizer if _is_a(optimizer, "_FabricOptimizer") else optimizer  # type: ignore[attr-defined]


def _is_a(thing: object, name: str) -> bool:
    return name in {cls.__name__ for cls in type(thing).__mro__}


def check_fabric(strategy: Any, owner: str) -> None:
    """Refuse a Fabric strategy whose checkpoints cannot contain frozen parameters.

    Raises:
        UnsupportedStrategyError: FSDP1.
    """
    if _is_a(strategy, "FSDPStrategy"):
        raise UnsupportedStrategyError(
            f"{owner} cannot work under Fabric's FSDPStrategy: it keeps optimizer state in a layout of its own.\n"
            "  Use FSDP2: Fabric(strategy=ModelParallelStrategy(parallelize_fn))"
        )


def guard(strategy: Any, freezer: Stateful, optimizers: Sequence[SlottedOptimizer]) -> None:
    """Let `fabric.save` and `fabric.load` accept the freezer anywhere in the state.

    The freezer is loaded before the optimizers, because their groups must already be those of the checkpoint. Torch's
    distributed state dicts, which FSDP2 uses, refuse empty groups. Methods are shadowed on the strategy.

    Args:
        strategy: the strategy of Fabric.
        freezer: the freezer; it is found in the state by identity.
        optimizers: optimizers whose empty slots are filled while FSDP2 saves or loads.
    """
    strategy.load_checkpoint = partial(_load, strategy, freezer, optimizers)
    if _is_a(strategy, "ModelParallelStrategy"):
        strategy.save_checkpoint = partial(_save, strategy, optimizers)


def release(strategy: Any) -> None:
    """Undo `guard`."""
    for method in ("load_checkpoint", "save_checkpoint"):
        vars(strategy).pop(method, None)


def _save(strategy: Any, optimizers: Sequence[SlottedOptimizer], *args: Any, **kwargs: Any) -> Any:
    with _no_empty_slots(optimizers):
        return type(strategy).save_checkpoint(strategy, *args, **kwargs)


def _load(
    strategy: Any,
    freezer: Stateful,
    optimizers: Sequence[SlottedOptimizer],
    path: Any,
    state: Any = None,
    **kwargs: Any,
) -> Any:
    load = partial(type(strategy).load_checkpoint, strategy, path)
    keys = [key for key, value in state.items() if value is freezer] if isinstance(state, dict) else []
    if not keys:
        return load(state, **kwargs)
    if not _is_a(strategy, "ModelParallelStrategy"):
        ordered = {key: state[key] for key in [*keys, *(key for key in state if key not in keys)]}
        remainder = load(ordered, **kwargs)
        state.update(ordered)
        return remainder
    freezer.load_state_dict(peek(strategy.broadcast(path), kwargs.get("weights_only"))[keys[0]])
    with _no_empty_slots(optimizers):
        remainder = load(state, **kwargs)
    state.update(dict.fromkeys(keys, freezer))  # FSDP2 replaces it by the saved dict
    return remainder


def _no_empty_slots(optimizers: Sequence[SlottedOptimizer]) -> ExitStack:
    stack = ExitStack()
    for slotted in optimizers:
        stack.enter_context(slotted.no_empty_slots())
    return stack
