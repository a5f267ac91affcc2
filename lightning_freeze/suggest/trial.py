"""One short run of a candidate on one fold, in a separate Trainer, with a copy of the module."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from typing import Any

from lightning_freeze.suggest.folds import Folds
from lightning_freeze.suggest.isolation import copy_of_module, seed_all
from lightning_freeze.suggest.metric import LOSS, Metric, value_of
from lightning_freeze.suggest.ways import Spec, make, spec
from lightning_freeze.trainer._lightning import Callback

_QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
_VALIDATE = 0.25  # maximum ratio of validation and training batches; validation has at least 4


@dataclass
class Task:
    """The module, data and length of a run.

    Args:
        module: a copy of the user's module, which is never trained itself.
        package: `lightning.pytorch` or `pytorch_lightning`.
        options: arguments for each Trainer: accelerator, precision, accumulation, clipping.
        folds: the training data.
        epochs: epochs of the user's run.
        steps: maximum number of optimizer steps; -1: no limit.
        seed: seed of everything that is random.
        base: initial learning rate of the module's optimizer.
        metric: the metric to compare candidates by.
        data: a copy of the data module, if there is one; its hooks are called.
        clock: returns seconds.
    """

    module: Any
    package: str
    options: dict[str, Any]
    folds: Folds
    epochs: int
    steps: int = -1
    seed: int = 0
    base: float = 1.0
    metric: Metric = field(default_factory=lambda: Metric(LOSS, "min"))
    data: Any = None
    clock: Callable[[], float] = time.perf_counter

    def trainer(self, callbacks: Sequence[Any] = (), **options: Any) -> Any:
        """A Trainer that writes and prints nothing."""
        cls = import_module(self.package).Trainer
        return cls(callbacks=list(callbacks), **_QUIET | {"num_sanity_val_steps": 0} | self.options | options)

    def fed(self, fold: int) -> dict[str, Any]:
        """Arguments of `fit` for a fold: loaders, or the data module with its loaders replaced."""
        train, val = self.folds.train(fold), self.folds.val(fold)
        if self.data is None:
            return {"train_dataloaders": train} | ({} if self.metric.name == LOSS else {"val_dataloaders": val})
        return {"datamodule": self._with(train, val)}

    def judged(self, fold: int) -> dict[str, Any]:
        """Arguments of `validate` for a fold."""
        val = self.folds.val(fold)
        return {"dataloaders": val} if self.data is None else {"datamodule": self._with(val, val)}

    def _with(self, train: Any, val: Any) -> Any:
        found = copy.copy(self.data)
        own = dict.fromkeys(("prepare_data", "setup", "teardown"), _nothing)
        vars(found).update(own, train_dataloader=lambda: train, val_dataloader=lambda: val)
        return found

    @property
    def fold_batches(self) -> int:
        """The number of training batches per epoch with one fold held out."""
        limit = self.options.get("limit_train_batches", 1.0)
        batches = max(1, self.folds.batches - self.folds.batches // self.folds.count)
        return max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))

    @property
    def every(self) -> int:
        """The number of batches per optimizer step."""
        return int(self.options.get("accumulate_grad_batches", 1))

    @property
    def epoch_steps(self) -> int:
        """The number of optimizer steps per epoch with one fold held out."""
        return math.ceil(self.fold_batches / self.every)

    @property
    def run_steps(self) -> int:
        """The number of optimizer steps of a whole run."""
        planned = self.epochs * self.epoch_steps
        return planned if self.steps < 0 else min(planned, self.steps)

    def length(self, share: float) -> dict[str, Any]:
        """Trainer arguments for a run of this share of the user's run: whole epochs, or a part of one."""
        epochs = self.run_steps / self.epoch_steps * share
        if epochs < 1:
            return {"max_epochs": 1, "limit_train_batches": max(1, math.ceil(self.fold_batches * epochs))}
        limited = {} if self.steps < 0 else {"max_steps": max(1, round(self.steps * share))}
        return {"max_epochs": math.ceil(epochs - 0.5)} | limited


def _nothing(*_: Any, **__: Any) -> None:
    """Replaces a hook that has already been called."""


@dataclass(frozen=True)
class Measured:
    """The result of a run.

    Attributes:
        value: the metric on the fold; NaN if the run failed.
        seconds: seconds of the whole trial, including validation.
        steps: number of optimizer steps.
        step_seconds: seconds of one optimizer step, including data loading.
        error: the reason why the run failed; "" if it did not.
    """

    value: float
    seconds: float
    steps: int
    step_seconds: float
    error: str = ""


def trial(task: Task, specs: Sequence[Spec], factor: float, fold: int, share: float) -> Measured:
    """Train a copy for a share of the user's run, and evaluate it on the fold.

    Args:
        task: the module and data.
        specs: callbacks of the candidate.
        factor: learning rate relative to the module's own.
        fold: the held-out fold. It determines the seed of order, dropout and augmentation for all candidates.
        share: fraction of the user's run, greater than 0 and at most 1.
    """
    began = task.clock()
    seed_all(task.seed + 1000 * fold)
    try:
        module, callbacks = copy_of_module(task.module), make([*specs, *_rate(factor)])
        callbacks = [*map(_quiet, callbacks), clock := Clock(task.clock)]
        trainer = task.trainer(callbacks, limit_val_batches=0, **task.length(share))
        with running():
            trainer.fit(module, **task.fed(fold))
            value = judge(task, module, fold)
    except Exception as error:  # a candidate that fails is a row of the table; the search continues
        logging.getLogger(__name__).debug("a trial broke down", exc_info=error)
        first = str(error).strip().splitlines() or [""]
        return Measured(math.nan, task.clock() - began, 0, 0.0, f"{type(error).__name__}: {first[0]}")
    steps = int(trainer.global_step)
    return Measured(value, task.clock() - began, steps, clock.step(task.every))


@contextmanager
def running() -> Iterator[None]:
    """Run a Trainer silently, and turn Lightning's exit on Ctrl-C back into KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with redirect_stdout(StringIO()):
            yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
        raise KeyboardInterrupt from None


def _rate(factor: float) -> list[Spec]:
    return [] if factor == 1 else [spec("LayerwiseLR", multipliers={"*": factor})]


def _quiet(callback: Any) -> Any:
    if hasattr(callback, "verbose"):
        callback.verbose = False
    return callback


class Clock(Callback):
    """Time batches from the second on, because the first includes one-time setup."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.last: float | None = None
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        now = self.clock()
        if self.last is not None:
            self.times.append(now - self.last)
        self.last = now

    def step(self, batches: int) -> float:
        """Seconds of an optimizer step of `batches` batches; 0 after a single batch."""
        return statistics.median(self.times) * batches if self.times else 0.0


def judge(task: Task, module: Any, fold: int, batches: int | None = None) -> float:
    """The metric of a module on a fold or its first batches."""
    return value_of(validated(task, module, fold, batches), task.metric)


def validated(task: Task, module: Any, fold: int, batches: int | None = None, own: bool = False) -> dict[str, Any]:
    """The values that validation logs on a fold; with `own`, always by the module's own validation step."""
    if task.metric.name == LOSS and not own:
        vars(module)["validation_step"] = _held_out(module)
    trainer = task.trainer(limit_val_batches=batches or max(4, int(_VALIDATE * task.run_steps)))
    trainer.validate(module, **task.judged(fold), verbose=False)
    return dict(trainer.callback_metrics)


def _held_out(module: Any) -> Any:
    """A validation step that logs the loss of the training step, without training."""
    takes = len(inspect.signature(module.training_step).parameters)

    def validation_step(batch: Any, batch_idx: int) -> None:
        out = module.training_step(*(batch, batch_idx)[:takes])
        loss = out["loss"] if isinstance(out, dict) else out
        module.log(LOSS, loss, on_step=False, on_epoch=True)

    return validation_step
