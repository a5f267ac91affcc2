"""Use the policies in your own loop: plain PyTorch, DistributedDataParallel, or Lightning Fabric."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_freeze.arguments import check_positive
from lightning_freeze.engine.declarations import Change
from lightning_freeze.engine.policy import Policy
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.errors import PlanError, ResumeError
from lightning_freeze.report.changes import change_line
from lightning_freeze.report.rendering import show
from lightning_freeze.report.table import start_table
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.trainer import fabric
from lightning_freeze.trainer.callback import FreezeCallback
from lightning_freeze.trainer.ddp import rebuild
from lightning_freeze.trainer.ranks import check_agreement, from_rank_0
from lightning_freeze.trainer.strategies import check_optimizers, check_strategy


class Freezer:
    """Freeze and unfreeze a model in a training loop without a Trainer, with the callbacks of this package.

    The constructor freezes parameters and splits the optimizers into groups. At the end of the `with` block, flags and
    modes are restored; the optimizers keep their groups.

    Args:
        model: a module, a `DistributedDataParallel` around one, the result of `fabric.setup`, or a module that
            `fully_shard` was applied to.
        policies: callbacks of this package, in any order.
        optimizers: one or several optimizers that contain every parameter that will train at some time.
        schedulers: the LR schedulers of these optimizers, made before the Freezer.
        total_steps: optimizer steps of the whole run, for schedules in fractions of the run.
        verbose: print the table of stages at the start and a line at each change, on rank 0.

    Raises:
        PlanError: a callback needs a Trainer, or a schedule cannot work.
        FreezeError: patterns, optimizers, schedulers or strategies cannot work, as in a fit.

    Examples:
        >>> from lightning_freeze import GradualUnfreeze
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with Freezer(model, [GradualUnfreeze(["1", "0"])], [optimizer], verbose=False) as freezer:
        ...     for epoch in range(2):
        ...         change = freezer.epoch(epoch)
        ...         print(epoch, change.unfrozen, len(optimizer.param_groups[0]["params"]))
        0 () 0
        1 ('0.weight', '0.bias') 2
    """

    def __init__(
        self,
        model: nn.Module,
        policies: Sequence[Policy],
        optimizers: Optimizer | Sequence[Optimizer] = (),
        schedulers: Sequence[Any] = (),
        *,
        total_steps: int | None = None,
        verbose: bool = True,
    ) -> None:
        given = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        plain = [fabric.unwrapped_optimizer(optimizer) for optimizer in given]
        _check(policies, plain, total_steps)
        self._model = model
        self._strategy = fabric.strategy_of(model)
        if self._strategy is not None:
            for policy in policies:
                check_strategy(self._strategy, policy.title)
                fabric.check_fabric(self._strategy, policy.title)
        self._wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
        self._total, self._verbose = total_steps, verbose
        self._stepped = self._announced = self._closed = False
        self._next_step = math.inf
        self.reconciler = Reconciler(
            fabric.unwrapped(model), policies, plain, schedulers, agree=check_agreement, rebuild=self._rebuild
        )
        self._watch_loading(plain)
        if self._strategy is not None:
            fabric.guard(self._strategy, self, self.reconciler.optimizers)
        self._reconcile(0, 0)

    @property
    def module(self) -> nn.Module:
        """The module to call in training: the given model, with an up-to-date DDP wrapper."""
        return self._model

    def epoch(self, epoch: int) -> Change:
        """Apply what the policies want at the start of an epoch, and return the changes.

        Args:
            epoch: zero-based.

        Raises:
            PlanError: the schedule counts optimizer steps, and `step` was never called.
        """
        if epoch > 0 and not self._stepped and math.isfinite(self._next_step):
            raise PlanError(
                f"the schedule counts optimizer steps (the next change is at step {self._next_step:g}), and none was "
                "counted in the epochs so far.\n  Call freezer.step(n) after each optimizer step"
            )
        return self._reconcile(epoch, self.reconciler.progress.step)

    def step(self, step: int) -> Change:
        """Report the number of optimizer steps done. Schedules in steps change here, never within a window.

        Args:
            step: optimizer steps done since the start of the run.
        """
        self._stepped = True
        if step >= self._next_step:
            return self._reconcile(self.reconciler.progress.epoch, step)
        now = self.reconciler.progress
        self.reconciler.progress = Progress(now.epoch, step, self._total)
        return Change()

    def validated(self, metrics: Mapping[str, Any]) -> None:
        """Pass the metrics of a validation to policies with `monitor`. All ranks use those of rank 0.

        Args:
            metrics: name -> value. Call it on all ranks, once after each validation.

        Raises:
            PlanError: the metric that a policy monitors is missing.
        """
        for policy in self.reconciler.policies:
            if (name := policy.watched_metric) is not None:
                known = {key: torch.as_tensor(value).detach().cpu().float() for key, value in metrics.items()}
                if name in known:
                    known[name] = from_rank_0(known[name])
                self.reconciler.validated(policy, known, self.reconciler.progress.epoch)

    def _reconcile(self, epoch: int, step: int) -> Change:
        first = not self.reconciler.wants
        change = self.reconciler.reconcile(Progress(epoch, step, self._total))
        self._next_step = self.reconciler.next_step()
        if not first:
            self._announce(change)
        return change

    def _announce(self, change: Change) -> None:
        """Print the table at the first call, which may follow the loading of a checkpoint; later, lines."""
        text = change_line(self.reconciler.view, change) if self._announced else start_table(self.reconciler.view)
        self._announced = True
        loud = self._verbose and all(policy.verbose for policy in self.reconciler.policies)
        if text and loud and _rank() == 0:
            show(text)

    def _rebuild(self) -> bool:
        for wrapper in self._wrappers:
            if not any(parameter.requires_grad for parameter in wrapper.parameters()):
                raise PlanError(
                    f"nothing trains in the DistributedDataParallel wrapper of {type(wrapper.module).__name__}, and "
                    "torch allows none without.\n  Keep a parameter of it trainable, or put one wrapper around the "
                    "whole model"
                )
        return [rebuild(wrapper) for wrapper in self._wrappers] != []

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed run, in addition to that of model, optimizers and schedulers: plain types, tensors.

        With sharded parameters (FSDP2) all ranks must call it.
        """
        return self.reconciler.record()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint. Load the state of the optimizers after it, not before.

        Raises:
            ResumeError: callbacks, stages, groups or trainable parameters differ.
        """
        self.reconciler.load(state)
        self._stepped = True
        self._next_step = self.reconciler.next_step()

    def _watch_loading(self, optimizers: Sequence[Optimizer]) -> None:
        self._hooks = [optimizer.register_load_state_dict_pre_hook(_check_sizes) for optimizer in optimizers]

    # ---- the end

    def close(self) -> None:
        """Restore flags and modes. A second call does nothing."""
        self._close(whole=True)

    def _close(self, *, whole: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self.reconciler.close()
        for hook in self._hooks:
            hook.remove()
        if self._strategy is not None:
            fabric.release(self._strategy)
        if whole:  # after an error, other ranks may have ended
            for wrapper in self._wrappers:
                rebuild(wrapper)

    def __enter__(self) -> Freezer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._close(whole=error is None)
        if error is None and _rank() == 0:
            for policy in self.reconciler.policies:
                for text in policy.warnings(self.reconciler.progress):
                    warnings.warn(text, stacklevel=2)


def _check(policies: Sequence[Any], optimizers: Sequence[Optimizer], total_steps: int | None) -> None:
    for policy in policies:
        if not isinstance(policy, Policy):
            raise PlanError(f"Freezer: {type(policy).__name__} is not a callback of lightning_freeze")
        if isinstance(policy, FreezeCallback) and policy.needs_trainer:
            raise PlanError(
                f"Freezer: {policy.title} works through the hooks of a Trainer, and a loop without one does not call "
                "them.\n  Train with a Trainer, or leave it out"
            )
        if policy.needs_run_length and total_steps is None:
            raise PlanError(
                f"Freezer: {policy.title} has a schedule in fractions of the run, whose length is not known.\n"
                "  Pass total_steps=..., the optimizer steps of the whole run"
            )
    if total_steps is not None:
        check_positive(total_steps, "total_steps", "Freezer")
    check_optimizers(optimizers, "Freezer")


def _check_sizes(optimizer: Optimizer, state: dict[str, Any]) -> None:
    here = [len(group["params"]) for group in optimizer.param_groups]
    there = [len(group["params"]) for group in state["param_groups"]]
    if here != there:
        raise ResumeError(
            f"the groups of {type(optimizer).__name__} hold {here} parameters and those of the checkpoint {there}.\n"
            "  Load the state of the Freezer first: it makes the groups those of the checkpoint"
        )


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
