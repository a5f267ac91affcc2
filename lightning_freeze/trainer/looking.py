"""Examine a training step before it runs: which parameters it uses, and in which order.

`training_step` runs once on a copy of the first batch. Loggers, optimizers and schedulers are replaced during this run,
and changes of the module are undone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.checkpoint import CheckpointFunction

from lightning_freeze.errors import PlanError
from lightning_freeze.model.dry_run import eagerly, without_collection
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.model.undone import undone
from lightning_freeze.stages.discovery import can_train
from lightning_freeze.stages.looked_at import Look, read_look, without_loss
from lightning_freeze.stages.usage import UsageMode
from lightning_freeze.trainer._lightning import LightningModule, Trainer

_QUIET = ("log", "log_dict", "print", "clip_gradients")  # methods of the module that must not run here


@without_collection()
def look_at(
    trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, *, thaw: bool = False
) -> tuple[Look, str]:
    """The order of the parameters that can train, and why it is not that of the training step; "" if it is.

    Args:
        trainer: the Trainer, right before its first batch is trained.
        module: the module without wrappers, on its device.
        batch: the batch for `training_step`; a copy is used.
        batch_idx: its index.
        thaw: whether parameters that require no gradient can train as well.
    """
    index = ModelIndex(module)
    trains = can_train(index, thaw=thaw)
    mode, why = None, ""
    # At first without what a backward pass needs, for the memory's sake. A step that runs one by itself is repeated.
    for saves in (False, True):
        mode = UsageMode(index, with_gradient=True)
        try:
            with undone(module):
                if thaw:
                    _thaw(module)
                losses = _run(trainer, module, batch, batch_idx, mode, saves)
        except Exception as error:
            why = _first_line(error)
            continue
        try:
            return read_look(mode, losses, trains, _groups(trainer, index)), ""
        except PlanError as error:
            why = str(error)
            break
    return without_loss(mode, index, trains), why


def _thaw(module: LightningModule) -> None:
    for parameter in module.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)


def _first_line(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _groups(trainer: Trainer, index: ModelIndex) -> list[list[str]]:
    """The parameters of each optimizer, if there are several."""
    held = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in trainer.optimizers]
    named = [[name for p in parameters if (name := index.name_of(p)) is not None] for parameters in held]
    return named if len(named) > 1 else []


def _run(
    trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, mode: UsageMode, saves: bool
) -> list[Tensor]:
    """Run the step on a copy of the batch, and return the tensors that backward starts from."""
    losses: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(_stand_ins(trainer, module))
        stack.enter_context(_recorded(module, losses, runs=saves))
        stack.enter_context(eagerly())
        if not saves:
            stack.enter_context(saved_tensors_hooks(_drop, _refuse))
        given = _arguments(module, deepcopy(batch), batch_idx)
        mode.take_inputs(given)
        stack.enter_context(trainer.precision_plugin.train_step_context())
        stack.enter_context(torch.enable_grad())
        stack.enter_context(mode.calls())
        stack.enter_context(mode)
        result = module.training_step(*given)
    loss = result.get("loss") if isinstance(result, Mapping) else result
    return [*losses, *([loss] if isinstance(loss, Tensor) else [])]


def _arguments(module: LightningModule, batch: Any, batch_idx: int) -> tuple[Any, ...]:
    names = list(inspect.signature(module.training_step).parameters)
    if "dataloader_iter" in names:
        raise PlanError("training_step takes its batches from the loader itself")
    return (batch, batch_idx) if len(names) > 1 or "batch_idx" in names else (batch,)


def _drop(tensor: Tensor) -> None:
    """Save nothing for the backward pass."""


def _refuse(packed: object) -> Tensor:
    raise PlanError("training_step runs a backward pass by itself")


# ---- replacements during the run


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of an instance or class, not of its base classes."""
    before, missing = vars(owner).get(name), name not in vars(owner)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if missing else setattr(owner, name, before)


@contextmanager
def _stand_ins(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Replace everything that logs, and the steps of optimizers and schedulers."""
    with ExitStack() as stack:
        for name in _QUIET:
            stack.enter_context(_replaced(module, name, _nothing))
        for stepper in _steppers(trainer, module):
            stack.enter_context(_replaced(stepper, "step", _run_closure))
            if hasattr(stepper, "zero_grad"):
                stack.enter_context(_replaced(stepper, "zero_grad", _nothing))
        loggers = list(trainer.loggers)
        silent: list[Any] = [_Silent() for _ in loggers]
        trainer.loggers = silent
        stack.callback(setattr, trainer, "loggers", loggers)
        yield


def _steppers(trainer: Trainer, module: LightningModule) -> list[Any]:
    """The optimizers of Lightning and torch, and the schedulers."""
    wrapped = getattr(trainer.strategy, "_lightning_optimizers", [])
    kept = [one for one in vars(module).values() if isinstance(one, torch.optim.Optimizer | LRScheduler)]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return list({id(one): one for one in (*trainer.optimizers, *wrapped, *schedulers, *kept)}.values())


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _run_closure(closure: Callable[[], Any] | None = None, *args: Any, **kwargs: Any) -> Any:
    return closure() if callable(closure) else None


class _Silent:
    """Replaces a logger and all of its attributes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: Any) -> None:
        pass


@contextmanager
def _recorded(module: LightningModule, losses: list[Tensor], runs: bool) -> Iterator[None]:
    """Record backward passes, and run them only if necessary. Reentrant checkpointing hides nothing.

    A gradient that is differentiated itself (a penalty, a force) counts as the tensor that it is the gradient of.
    """
    backward, grad = torch.autograd.backward, torch.autograd.grad

    def record(loss: Any, *args: Any, **kwargs: Any) -> None:
        found = [loss] if isinstance(loss, Tensor) else list(loss)
        losses.extend(found)
        if runs:
            backward(found, retain_graph=True)

    def differentiated(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = grad(outputs, *args, **kwargs)
        if not kwargs.get("create_graph"):
            return found
        origin = sum(one.sum() for one in ([outputs] if isinstance(outputs, Tensor) else outputs))
        return tuple(None if one is None else one.detach() + 0 * origin for one in found)

    def whole(function: Callable[..., Any], preserve: object, *args: Any) -> Any:
        return function(*args)

    with ExitStack() as stack:
        stack.enter_context(_replaced(module, "manual_backward", record))
        stack.enter_context(_replaced(Tensor, "backward", record))
        stack.enter_context(_replaced(torch.autograd, "backward", record))
        stack.enter_context(_replaced(torch.autograd, "grad", differentiated))
        stack.enter_context(_replaced(CheckpointFunction, "apply", staticmethod(whole)))
        yield
