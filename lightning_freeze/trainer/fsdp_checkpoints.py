"""Support for strategies that load a checkpoint after `on_fit_start`: FSDP and FSDP2.

Torch loads their optimizer state. It refuses empty groups, and it loads the state of parameters that require a
gradient at that moment: if there are too few, state is silently lost; if there are too many, it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_freeze.optim.slotted import SlottedOptimizer

_METADATA = "meta.pt"  # the file of a sharded Lightning checkpoint with everything but weights and optimizers


def shadow_loading(strategy: Any, optimizers: Sequence[SlottedOptimizer], prepare: Callable[[Any, Any], None]) -> None:
    """Shadow saving and loading of a strategy that loads after `on_fit_start` (FSDP, FSDP2).

    Args:
        strategy: the Trainer's strategy; any other one is left unchanged. Methods are shadowed on the instance until
            `restore_loading`.
        optimizers: optimizers whose empty slots are filled while their state is saved or loaded.
        prepare: called with path and `weights_only` right before a checkpoint is loaded.
    """
    if strategy.restore_checkpoint_after_setup:
        strategy.optimizer_state = partial(_optimizer_state, strategy, optimizers)
        strategy.load_checkpoint = partial(_load_checkpoint, strategy, optimizers, prepare)


def restore_loading(strategy: Any, optimizers: Sequence[SlottedOptimizer]) -> None:
    """Restore the methods of a strategy. Empty slots are filled, so it can save later checkpoints too."""
    if strategy.restore_checkpoint_after_setup:
        for slotted in optimizers:
            slotted.fill_empty_slots()
    for name in ("optimizer_state", "load_checkpoint"):
        if getattr(vars(strategy).get(name), "func", None) in (_optimizer_state, _load_checkpoint):
            delattr(strategy, name)


def _optimizer_state(strategy: Any, optimizers: Sequence[SlottedOptimizer], optimizer: Optimizer) -> Any:
    with _no_empty_slots(optimizers):
        return type(strategy).optimizer_state(strategy, optimizer)


def _load_checkpoint(
    strategy: Any,
    optimizers: Sequence[SlottedOptimizer],
    prepare: Callable[[Any, Any], None],
    checkpoint_path: Any,
    weights_only: bool | None = None,
) -> Any:
    prepare(strategy.broadcast(checkpoint_path), weights_only)
    with _no_empty_slots(optimizers):
        return type(strategy).load_checkpoint(strategy, checkpoint_path, weights_only=weights_only)


def _no_empty_slots(optimizers: Sequence[SlottedOptimizer]) -> ExitStack:
    stack = ExitStack()
    for slotted in optimizers:
        stack.enter_context(slotted.no_empty_slots())
    return stack


def peek(path: Any, weights_only: bool | None) -> dict[str, Any]:
    """The content of a checkpoint except weights and optimizers; a single file is memory-mapped."""
    path = Path(path)
    file = path / _METADATA if path.is_dir() else path
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=weights_only)
    return checkpoint
