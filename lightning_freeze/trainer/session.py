"""One fit of one Trainer: when to reconcile, what to save in a checkpoint, what to print."""

from __future__ import annotations

import math
import sys
import warnings
from contextlib import suppress
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Change
from lightning_freeze.engine.policy import Policy, shared_stages
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.engine.run_view import RunView
from lightning_freeze.engine.updates import Updates
from lightning_freeze.errors import PlanError, ResumeError
from lightning_freeze.model.index import is_compiled
from lightning_freeze.optim.slotted import SlottedOptimizer
from lightning_freeze.report.changes import change_line
from lightning_freeze.report.rendering import show
from lightning_freeze.report.table import start_table
from lightning_freeze.schedule.calendar import Calendar
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.stages.discovery import StagesPending
from lightning_freeze.trainer import averaging, swa
from lightning_freeze.trainer._lightning import LightningModule, Trainer
from lightning_freeze.trainer.auto_stages import AutoStages
from lightning_freeze.trainer.compiling import Compiling, regions_of
from lightning_freeze.trainer.ddp import rebuild
from lightning_freeze.trainer.fsdp_checkpoints import peek, restore_loading, shadow_loading
from lightning_freeze.trainer.lr_finder import FoundRates
from lightning_freeze.trainer.ranks import check_agreement
from lightning_freeze.trainer.run_length import calendar_of, steps_of
from lightning_freeze.trainer.strategies import check_optimizers, check_record, check_strategy, check_unused

_KEY = "lightning_freeze"  # of the checkpoint
_ATTRIBUTE = "_lightning_freeze_session"  # of the Trainer


def session_of(trainer: Trainer) -> Session:
    """The session of the running fit; a new one if the last fit has ended."""
    session: Session | None = getattr(trainer, _ATTRIBUTE, None)
    if session is None or session.over:
        session = Session(trainer)
        setattr(trainer, _ATTRIBUTE, session)
    return session


def last_session(trainer: Trainer) -> Session | None:
    """The session of the running or last fit; a checkpoint can be saved after the fit."""
    return getattr(trainer, _ATTRIBUTE, None)


class Session:
    """The state that all policies of a Trainer share. The first hook called at a moment does the work for all."""

    def __init__(self, trainer: Trainer) -> None:
        self._callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]
        self.policies = [callback for callback in self._callbacks if isinstance(callback, Policy)]
        self.reconciler: Reconciler | None = None
        self.over = False
        self.next_step = math.inf
        self._checked = False
        self.waits = False  # for the first batch, if stages must be discovered from it
        self._auto = AutoStages()
        self._slotted: list[SlottedOptimizer] = []
        self._run: tuple[Trainer, LightningModule] | None = None
        self._loaded: dict[str, Any] | None = None
        self._total_steps: int | None = None
        self._calendar: Calendar | None = None
        self._foreseen: list[Policy] = []  # warnings given at the start
        self._found = FoundRates(())
        self._announced = False
        self._finished = False
        self._compiling: Compiling | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copied or pickled Trainer has no session

    # ---- before training

    def check(self, trainer: Trainer, model: LightningModule) -> None:
        """At `setup`: check what can be checked before the model is complete.

        Raises:
            FreezeError: the strategy or the length of the run cannot work, or a pattern matches nothing.
        """
        if self._checked:
            return
        self._checked = True
        for policy in self.policies:
            check_strategy(trainer.strategy, policy.title)
            if policy.idles:
                check_unused(trainer.strategy, policy.title)
            policy.check_trainer(trainer)
        if _is_whole(model):
            starts = [policy.next_start for policy in self.policies]
            self._auto.thaw = any(policy.thaw for policy in self.policies)
            context = Context(model, shared_stages(self.policies), self._auto, starts)
            for policy in self.policies:
                with suppress(StagesPending):
                    policy.bind(context)

    def start(self, trainer: Trainer, model: LightningModule) -> None:
        """At `on_fit_start`: the optimizers exist; a checkpoint may still have to be loaded."""
        if self.reconciler is None and not self.waits:
            check_optimizers(trainer.optimizers, self.policies[0].title)
            self._run = trainer, model
            shadow_loading(trainer.strategy, self._slotted, self._before_load)
            self._bind(trainer, model)

    def _bind(self, trainer: Trainer, model: LightningModule) -> None:
        """Split the optimizers and freeze; if stages are unknown, wait for the first batch or a checkpoint."""
        unused = any(policy.idles for policy in self.policies)
        try:
            self.reconciler = Reconciler(
                model,
                self.policies,
                trainer.optimizers,
                _schedulers(trainer, model),
                agree=check_agreement,
                rebuild=lambda: _rebuild(trainer.strategy, unused),
                discovery=self._auto,
            )
        except StagesPending:
            self.waits = True
            return
        self.waits = False
        self._slotted[:] = self.reconciler.optimizers
        compiled = [span.module for span in self.reconciler.index.spans if is_compiled(span.module)]
        compiled += [model] if getattr(model, "_compiler_ctx", None) else []
        if compiled:
            changes = len(set(self.reconciler.labels.values())) + 2 * len(self.policies)
            self._compiling = Compiling(changes, regions_of(compiled))
        if unused:
            _rebuild(trainer.strategy, unused)  # a session that freezes nothing needs no more
        self._found = FoundRates(self._callbacks)
        averaging.protect(self._callbacks, self.view)
        swa.keep_factors(self._callbacks, self.view)
        if self._loaded is not None:
            self._take_up(self._loaded, modes=False)
        else:
            self.reconciler.reconcile(Progress(trainer.current_epoch, trainer.global_step), modes=False)

    def _take_up(self, record: dict[str, Any], *, modes: bool) -> None:
        assert self.reconciler is not None
        self.reconciler.load(record, modes=modes)
        self.next_step = self.reconciler.next_step()

    # ---- during training

    def reconcile(self, trainer: Trainer, model: LightningModule) -> Change:
        """Apply what the policies want now, and print what changed."""
        self.start(trainer, model)
        if self.reconciler is None:
            return Change()
        self._found.spread(self.reconciler)
        with swa.training_epochs(trainer) as epoch:
            return self._reconcile(trainer, self.reconciler, epoch)

    def _reconcile(self, trainer: Trainer, reconciler: Reconciler, epoch: int) -> Change:
        if self._total_steps is None and any(policy.needs_run_length for policy in self.policies):
            self._total_steps = steps_of(trainer)
        if self._calendar is None:
            self._calendar = calendar_of(trainer, len(trainer.optimizers))
        progress = Progress(epoch, trainer.global_step, self._total_steps, self._calendar)
        change = reconciler.reconcile(progress)
        if change.unfrozen or change.frozen or not self._announced:
            averaging.share(self._callbacks, trainer.lightning_module, reconciler.view)
        if self._compiling is not None and (change.unfrozen or change.frozen):
            self._compiling.changed({name: reconciler.index.parameters[name] for name in change.unfrozen})
        self.next_step = reconciler.next_step()
        if not self._announced:
            self._announced = True
            self._print(trainer, start_table(reconciler.view, last_moment(trainer)))
            self._warn_of_the_end(trainer, progress)
        elif change:
            self._print(trainer, change_line(reconciler.view, change))
        return change

    def see(self, trainer: Trainer, model: LightningModule, batch: Any, batch_idx: int) -> None:
        """Discover stages from the first batch if needed, and bind the policies."""
        self._auto.see(trainer, model, batch, batch_idx)
        self._bind(trainer, model)

    def assume(self, trainer: Trainer, model: LightningModule) -> None:
        """Bind without a batch: stages follow the order of registration."""
        self._auto.load([])
        self._bind(trainer, model)

    def _warn_of_the_end(self, trainer: Trainer, progress: Progress) -> None:
        """Warn at the start of everything planned after the end of the run."""
        for policy in self.policies if not _is_trial(trainer) else ():
            for text in policy.foreseen(progress):
                self._foreseen.append(policy)
                if trainer.is_global_zero:
                    warnings.warn(text, stacklevel=2)

    def step_is_due(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether a step trigger is due and an accumulation window begins; changes never split a window."""
        return trainer.global_step >= self.next_step and batch_idx % trainer.accumulate_grad_batches == 0

    def check_loss(self, loss: torch.Tensor) -> None:
        """Refuse a loss of frozen parameters only. Torch's "element 0 of tensors does not require grad" names none.

        Raises:
            PlanError: the loss depends on no trainable parameter.
        """
        if self.reconciler is not None and not loss.requires_grad:
            _refuse_frozen_loss(self.reconciler.view)

    def before_update(self, optimizer: Optimizer) -> None:
        """Called after the backward pass, before gradients are clipped."""
        if self.reconciler is not None:
            self.reconciler.updates.before(optimizer)
        if self._compiling is not None:
            self._compiling.check_gradients()

    def _print(self, trainer: Trainer, text: str) -> None:
        if text and trainer.is_global_zero and all(policy.verbose for policy in self.policies):
            show(text)

    def view(self) -> RunView:
        """A read-only view of the current run."""
        assert self.reconciler is not None
        return self.reconciler.view

    def updates(self) -> Updates:
        """The hooks around steps, with the rates of the next and of the last step."""
        assert self.reconciler is not None
        return self.reconciler.updates

    def validated(self, trainer: Trainer, policy: Policy) -> None:
        """Pass the metrics of a validation to a policy. All ranks use those of rank 0, so that they decide the same.

        Raises:
            PlanError: the metric that it monitors is missing.
        """
        if self.reconciler is None or policy.watched_metric is None:
            return
        metrics = _metrics(trainer, policy.watched_metric)
        self.reconciler.validated(policy, metrics, trainer.current_epoch)

    # ---- checkpoints

    def save(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run needs to a checkpoint, once for all policies."""
        if _KEY not in checkpoint:
            checkpoint[_KEY] = self.reconciler.record() if self.reconciler else {}
            if self.reconciler:
                check_record(trainer.strategy, checkpoint[_KEY])

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Load a checkpoint: at once if the run has started, else when it starts.

        Raises:
            ResumeError: the checkpoint was written without these callbacks, or with others.
        """
        if _KEY not in checkpoint:
            raise ResumeError(
                f"the checkpoint was written by a run without {', '.join(policy.title for policy in self.policies)}, "
                "so its optimizer groups cannot be those of this run.\n"
                "  Load its weights only (`load_state_dict`) and start a new fit"
            )
        record = checkpoint[_KEY]
        if record and record is not self._loaded:
            self._loaded = record
            self._auto.load(record.get("discovered", []))
            if self.reconciler is not None:
                self._take_up(record, modes=bool(self.reconciler.view.held))
            elif self.waits and self._run is not None:
                self._bind(*self._run)

    def _before_load(self, path: Any, weights_only: bool | None) -> None:
        """Restore the run before the optimizers load their state, for strategies that load after the start."""
        if not self.over:
            self.load(peek(path, weights_only))

    # ---- after training

    def finish(self, trainer: Trainer) -> None:
        """At the end of training: warn of stages that never trained."""
        if self.reconciler is not None and trainer.is_global_zero and not (self._finished or _is_trial(trainer)):
            self._finished = True
            end = Progress(self.reconciler.progress.epoch, trainer.global_step)
            calendar = self._calendar
            as_planned = calendar is not None and trainer.global_step >= calendar.end * calendar.optimizers
            said = self._foreseen if as_planned else []
            for policy in (policy for policy in self.policies if policy not in said):
                for text in policy.warnings(end):
                    warnings.warn(text, stacklevel=2)

    def close(self) -> None:
        """Restore everything, however the fit ended."""
        if not self.over and self.reconciler is not None:
            self.reconciler.close()
            averaging.unprotect(self._callbacks)
            swa.release(self._callbacks)
        if not self.over and self._run is not None:
            restore_loading(self._run[0].strategy, self._slotted)
            self._run = None
        if not self.over and self._compiling is not None:
            self._compiling.close()
        self.over = True


def _metrics(trainer: Trainer, watched: str) -> dict[str, Any]:
    """The logged metrics; the one that is watched as rank 0 has it, so that all ranks decide alike."""
    metrics = dict(trainer.callback_metrics)
    if watched in metrics:
        value = torch.as_tensor(metrics[watched]).detach().cpu()
        metrics[watched] = trainer.strategy.broadcast(value if value.is_floating_point() else value.float())
    return metrics


def _refuse_frozen_loss(view: RunView) -> None:
    frozen = [name for name in view.index.parameters if view.before[name] and name not in view.trainable]
    if frozen:
        raise PlanError(
            f"the loss depends on nothing that trains in epoch {view.progress.epoch}, step {view.progress.step}: "
            f"{len(frozen)} parameters are frozen now, from '{frozen[0]}' on.\n"
            "  Put a part of what this loss is computed from in the first stage; with several optimizers, a part "
            "of what each of them trains"
        )


def _rebuild(strategy: Any, unused: bool) -> bool:
    if hasattr(strategy, "_pl_static_graph_delay_done"):
        strategy._pl_static_graph_delay_done = False  # a new reducer needs its static graph set again
    return rebuild(strategy.model, unused=unused)


def last_moment(trainer: Trainer) -> Progress | None:
    """The progress at the last step; None if the run has no end, or is designed to end early."""
    if _is_trial(trainer) or (trainer.max_epochs in (None, -1) and trainer.max_steps == -1):
        return None
    steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if not (math.isfinite(steps) and math.isfinite(batches)) or batches < 1:
        return None
    epochs = math.ceil(steps / math.ceil(batches / trainer.accumulate_grad_batches))
    several = not trainer.lightning_module.automatic_optimization  # a batch can have several steps
    return Progress(max(epochs - 1, 0), sys.maxsize if several else int(steps) - 1, int(steps))


def _schedulers(trainer: Trainer, model: LightningModule) -> list[Any]:
    """The schedulers that Lightning steps, and those that a module with manual optimization steps itself."""
    found = [config.scheduler for config in trainer.lr_scheduler_configs]
    for value in vars(model).values():
        kept = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [one for one in kept if isinstance(one, LRScheduler)]
    return found


def _is_whole(model: LightningModule) -> bool:
    """Whether the model is complete: the module overrides neither `setup` nor `configure_model`."""
    base = next(cls for cls in type(model).__mro__ if cls.__name__ == "LightningModule")
    return all(getattr(type(model), hook, None) is getattr(base, hook, None) for hook in ("setup", "configure_model"))


def _is_trial(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))  # it is designed to end early
