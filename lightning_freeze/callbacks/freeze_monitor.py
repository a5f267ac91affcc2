"""Log what trains, at what rate and with what gradient norms, and draw a picture of the run."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.engine.declarations import Change
from lightning_freeze.engine.run_view import RunView
from lightning_freeze.errors import PlanError
from lightning_freeze.optim.norms import local, reduced, shares, totals
from lightning_freeze.report import plot as picture
from lightning_freeze.report.timeline import Timeline, stage_members, stage_rates
from lightning_freeze.stages.naming import metric_name
from lightning_freeze.trainer._lightning import LightningModule, Trainer
from lightning_freeze.trainer.callback import FreezeCallback
from lightning_freeze.trainer.session import session_of


class FreezeMonitor(FreezeCallback):
    """Log what trains and at what rate, and draw the run: stages over time, coloured by rate.

    Every `log_every_n_steps`, each logger of the Trainer gets `freeze/trainable_parameters`, `freeze/unfrozen_stages`,
    and for each stage `freeze/lr/STAGE` (the rate of the last step, warm-up included) and `freeze/grad_norm/STAGE` (the
    2-norm before clipping). The last two are 0 while the stage is frozen.

    Args:
        log: whether to log.
        plot: path of a PNG, SVG or PDF file, written on rank 0 when training ends or stops with an error. It shows
            stages over time, coloured by rate, with unfreezings marked and the validation metric below (the metric that
            a `GradualUnfreeze` or a checkpoint monitors, else the first that validation logs). If the file cannot be
            written, there is a warning.

    Raises:
        PlanError: `plot` has another suffix, or matplotlib (the extra `plot`) is not installed.

    Examples:
        >>> FreezeMonitor(plot="run.svg").plot
        'run.svg'
        >>> FreezeMonitor(plot="run.txt")
        Traceback (most recent call last):
        ...
        lightning_freeze.errors.PlanError: FreezeMonitor: plot='run.txt' must be the path of a .png, .svg, .pdf file
    """

    needs_trainer = True

    def __init__(self, log: bool = True, plot: str | None = None) -> None:
        if not isinstance(log, bool):
            raise PlanError(f"{self.title}: log must be true or false, got {log!r}")
        if plot is not None:
            picture.check_path(plot, self.title)
        self.plot = plot
        self.logs = log  # Lightning overwrites an attribute called `log`
        self._timeline = Timeline()
        self._changed = False
        self._squares: Tensor | None = None  # of the gradients of each stage, since the last log
        self._trainable: int | None = None  # parameters; None: not counted since the last change
        self._keys: list[tuple[str, str]] = []  # the metrics of each stage
        self._stepped = False  # since the last log: not within an accumulation window
        self._members: dict[str, list[str]] = {}

    # ---- the policy decides nothing, and keeps its timeline over a resume

    observes_only = True

    @property
    def shapes_steps(self) -> bool:
        return self.logs  # so that the rates of a step are kept: when it is logged, a scheduler may have gone on

    def changed(self, done: Change) -> None:
        self._changed |= bool(done.unfrozen or done.frozen)
        self._trainable = None

    def state_of_run(self) -> dict[str, Any]:
        return {"timeline": self._timeline.record()} if self.plot is not None else {}

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        self._timeline = Timeline.of(state.get("timeline", {}))

    # ---- hooks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._timeline.samples:  # resumed: what changed so far is how things were, not a change of the run
            self._changed = False

    def begin(self, trainer: Trainer) -> None:
        run = session_of(trainer).view()
        self._members = stage_members(run)
        names = [metric_name(stage) for stage in self._members]
        self._keys = [(f"freeze/lr/{name}", f"freeze/grad_norm/{name}") for name in names]
        self._timeline.begin(run, f"{run.index.model_name}, {_schedule(run)}")
        if not self._timeline.samples:  # a resumed run goes on with those of the checkpoint
            self._sample(trainer, run)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if not session_of(trainer).waits:
            self._sample(trainer, session_of(trainer).view())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._changed:
            self._sample(trainer, session_of(trainer).view(), batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.logs and trainer.loggers and _is_due(trainer):
            self._take_norms(session_of(trainer).view())
            self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not _is_due(trainer):
            return
        run = session_of(trainer).view()
        if self._stepped:
            self._log(trainer, run)
            self._stepped = False
        if self.plot is not None:
            self._sample(trainer, run, batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.plot is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            name = self._timeline.metric or _metric(trainer)
            if name in trainer.callback_metrics:
                self._timeline.metric = name
                value = float(trainer.callback_metrics[name])
                self._timeline.values.append((_time(trainer, trainer.fit_loop.batch_idx + 1), value))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._timeline.end = max(self._timeline.end, float(trainer.current_epoch))
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._timeline.samples and self._members:
            self._timeline.end = max(self._timeline.end, _time(trainer, trainer.fit_loop.batch_idx + 1))
            self._draw(trainer)
        super().on_exception(trainer, pl_module, exception)

    # ---- what they do

    def _sample(self, trainer: Trainer, run: RunView, batch: int = 0) -> None:
        if self.plot is not None:
            rates = session_of(trainer).updates().rates()
            self._timeline.add(run, rates, _time(trainer, batch), trainer.global_step, change=self._changed)
        self._changed = False

    def _take_norms(self, run: RunView) -> None:
        """The squared norm of the gradients of each stage that has any, on the device; a collective if sharded."""
        stages = [[run.index.parameters[name] for name in names] for names in self._members.values()]
        having = [[parameter for parameter in stage if parameter.grad is not None] for stage in stages]
        lengths, moving = tuple(map(len, having)), list(chain.from_iterable(having))
        if moving:
            gradients = local([parameter.grad for parameter in moving if parameter.grad is not None])
            squares = reduced(totals(gradients, lengths, shares(moving), 2), moving)
            if self._squares is not None and 0 in lengths:  # another optimizer's step of this batch
                has = torch.tensor(lengths, device=squares.device) > 0
                squares = torch.where(has, squares, self._squares)
            self._squares = squares

    def _log(self, trainer: Trainer, run: RunView) -> None:
        rates = stage_rates(run, session_of(trainer).updates().rates_used(), list(self._members))
        if self._trainable is None:
            self._trainable = sum(run.index.parameters[name].numel() for name in run.trainable)
        norms = [0.0] * len(rates) if self._squares is None else self._squares.sqrt().tolist()
        self._squares = None
        values: dict[str, float] = {
            "freeze/trainable_parameters": float(self._trainable),
            "freeze/unfrozen_stages": float(sum(rate is not None for rate in rates.values())),
        }
        for (lr, grad_norm), rate, norm in zip(self._keys, rates.values(), norms, strict=True):
            values[lr], values[grad_norm] = rate or 0.0, norm
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _draw(self, trainer: Trainer) -> None:
        if self.plot is not None and trainer.is_global_zero and self._timeline.samples:
            try:
                picture.draw(self._timeline, self.plot)
            except PlanError as error:  # a run that is done, or has an error of its own, does not fail for a picture
                warnings.warn(f"{self.title}: {error}", stacklevel=2)
        self._members = {}


def _is_due(trainer: Trainer) -> bool:
    """Whether Lightning logs this batch; the loggers may be none."""
    due: bool = trainer._logger_connector.should_update_logs
    return due


def _time(trainer: Trainer, batch: int) -> float:
    """In epochs; of a loader without a length whole epochs only."""
    length = trainer.num_training_batches
    part = batch / length if 0 < length < float("inf") else 0.0
    return trainer.current_epoch + min(part, 1.0)


def _metric(trainer: Trainer) -> str:
    """The metric that something in the run monitors, else the first that validation has logged."""
    monitored = [getattr(callback, "monitor", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    logged = [name for name in trainer.callback_metrics if not name.startswith("train")]
    return next((name for name in [*monitored, *logged] if name in trainer.callback_metrics), "")


def _schedule(run: RunView) -> str:
    return ", ".join(run.deciding) or "no schedule"
