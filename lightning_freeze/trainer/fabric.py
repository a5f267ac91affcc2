"""What the package knows of Lightning Fabric: its wrappers, and how its strategies save and load.

By attribute and class name: nothing of `lightning.fabric` is imported.
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
    """What `fabric.save` and `fabric.load` treat as an object with state."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def strategy_of(module: nn.Module) -> Any | None:
    """The strategy that `fabric.setup` set a module up for; None for a module of no Fabric."""
    return getattr(module, "_strategy", None) if _is_a(module, "_FabricModule") else None


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's module, inside the wrappers of Fabric, DDP and `torch.compile`."""
    if _is_a(module, "_FabricModule"):
        return unwrapped(module._forward_module)  # type: ignore[arg-type]
    if isinstance(module, DistributedDataParallel):
        return unwrapped(module.module)
    return unwrapped(module._orig_mod) if _is_a(module, "OptimizedModule") else module  # type: ignore[arg-type]


def unwrapped_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside Fabric's wrapper."""
    return optimizer.optimizer if _is_a(optimizer, "_FabricOptimizer") else optimizer  # type: ignore[attr-defined]


def _is_a(thing: object, name: str) -> bool:
    return name in {cls.__name__ for cls in type(thing).__mro__}


def check_fabric(strategy: Any, owner: str) -> None:
    """Refuse a strategy of Fabric whose checkpoints cannot hold a frozen part.

    Raises:
        UnsupportedStrategyError: FSDP1.
    """
    if _is_a(strategy, "FSDPStrategy"):
        raise UnsupportedStrategyError(
            f"{owner} cannot work under Fabric's FSDPStrategy: it keeps optimizer state in a layout of its own.\n"
            "  Use FSDP2: Fabric(strategy=ModelParallelStrategy(parallelize_fn))"
        )


def guard(strategy: Any, freezer: Stateful, optimizers: Sequence[SlottedOptimizer]) -> None:
    """Let `fabric.save` and `fabric.load` take the freezer in any place of the state.

    Its state is loaded before that of the optimizers: their groups have to be those of the checkpoint by then. Torch's
    distributed state dicts, which FSDP2 uses, take no empty group. Methods are shadowed on the strategy.

    Args:
        strategy: of Fabric.
        freezer: found in the state by identity.
        optimizers: no slot of theirs is empty while FSDP2 saves or loads.
    """
    strategy.load_checkpoint = partial(_load, strategy, freezer, optimizers)
    if _is_a(strategy, "ModelParallelStrategy"):
        strategy.save_checkpoint = partial(_save, strategy, optimizers)


def release(strategy: Any) -> None:
    """Leave the strategy as it was before `guard`."""
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
    state.update(dict.fromkeys(keys, freezer))  # FSDP2 puts the saved dict in its place
    return remainder


def _no_empty_slots(optimizers: Sequence[SlottedOptimizer]) -> ExitStack:
    stack = ExitStack()
    for slotted in optimizers:
        stack.enter_context(slotted.no_empty_slots())
    return stack
