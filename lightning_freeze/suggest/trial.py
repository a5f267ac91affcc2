"""One short run of one candidate on one fold, in a Trainer of its own, on a copy of the module."""

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
_VALIDATE = 0.25  # validation takes no more batches than this share of the training batches, but at least 4


@dataclass
class Task:
    """What is trained, on what, for how long.

    Args:
        module: the user's module, a copy that is never trained itself.
        package: `lightning.pytorch` or `pytorch_lightning`.
        options: arguments for each Trainer: accelerator, precision, accumulation, clipping.
        folds: the training data.
        epochs: of the user's run.
        steps: optimizer steps at most; -1: no limit.
        seed: of everything that is random.
        base: the learning rate that the module's optimizer starts with.
        metric: what judges.
        data: the data module, a copy, where there is one; its hooks are called.
        clock: what seconds are measured with.
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
        """A Trainer that writes nothing and says nothing."""
        cls = import_module(self.package).Trainer
        return cls(callbacks=list(callbacks), **_QUIET | {"num_sanity_val_steps": 0} | self.options | options)

    def fed(self, fold: int) -> dict[str, Any]:
        """Arguments of `fit` for a fold: loaders, or the data module with these in place of its own."""
        train, val = self.folds.train(fold), self.folds.val(fold)
        if self.data is None:
            return {"train_dataloaders": train} | ({} if self.metric.name == LOSS else {"val_dataloaders": val})
        return {"datamodule": self._with(train, val)}

    def judged(self, fold: int) -> dict[str, Any]:
        """The same for `validate`."""
        val = self.folds.val(fold)
        return {"dataloaders": val} if self.data is None else {"datamodule": self._with(val, val)}

    def _with(self, train: Any, val: Any) -> Any:
        found = copy.copy(self.data)
        own = dict.fromkeys(("prepare_data", "setup", "teardown"), _nothing)
        vars(found).update(own, train_dataloader=lambda: train, val_dataloader=lambda: val)
        return found

    @property
    def fold_batches(self) -> int:
        """Training batches of an epoch with one fold held out."""
        limit = self.options.get("limit_train_batches", 1.0)
        batches = max(1, self.folds.batches - self.folds.batches // self.folds.count)
        return max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))

    @property
    def every(self) -> int:
        """Batches to an optimizer step."""
        return int(self.options.get("accumulate_grad_batches", 1))

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of such an epoch."""
        return math.ceil(self.fold_batches / self.every)

    @property
    def run_steps(self) -> int:
        """Optimizer steps of a whole run."""
        planned = self.epochs * self.epoch_steps
        return planned if self.steps < 0 else min(planned, self.steps)

    def length(self, share: float) -> dict[str, Any]:
        """Arguments of a Trainer whose run is this share of the user's: whole epochs, or a part of one."""
        epochs = self.run_steps / self.epoch_steps * share
        if epochs < 1:
            return {"max_epochs": 1, "limit_train_batches": max(1, math.ceil(self.fold_batches * epochs))}
        limited = {} if self.steps < 0 else {"max_steps": max(1, round(self.steps * share))}
        return {"max_epochs": math.ceil(epochs - 0.5)} | limited


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a hook that has been called already."""


@dataclass(frozen=True)
class Measured:
    """What came out of a run.

    Attributes:
        value: of the metric, on the fold; NaN when the run broke down.
        seconds: of the whole trial, with validation.
        steps: optimizer steps.
        step_seconds: of one optimizer step, with the data for it.
        error: why the run broke down, "" when it did not.
    """

    value: float
    seconds: float
    steps: int
    step_seconds: float
    error: str = ""


def trial(task: Task, specs: Sequence[Spec], factor: float, fold: int, share: float) -> Measured:
    """Train a copy for a share of the user's run, and judge it on the fold.

    Args:
        task: what is trained on what.
        specs: callbacks of the candidate.
        factor: learning rate relative to what the module is configured with.
        fold: what is held out. Order, dropout and augmentation follow from it, for all candidates alike.
        share: of the user's run, more than 0 and at most 1.
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
    except Exception as error:  # one candidate that cannot be run is a row of the table, not the end
        logging.getLogger(__name__).debug("a trial broke down", exc_info=error)
        first = str(error).strip().splitlines() or [""]
        return Measured(math.nan, task.clock() - began, 0, 0.0, f"{type(error).__name__}: {first[0]}")
    steps = int(trainer.global_step)
    return Measured(value, task.clock() - began, steps, clock.step(task.every))


@contextmanager
def running() -> Iterator[None]:
    """Room for a Trainer: what it prints goes nowhere, and Ctrl-C, which Lightning makes an exit, is Ctrl-C again."""
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
    """Times batches from the second on: the first one pays for what is set up once."""

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
        """Seconds of an optimizer step of so many batches; 0 after a single batch."""
        return statistics.median(self.times) * batches if self.times else 0.0


def judge(task: Task, module: Any, fold: int, batches: int | None = None) -> float:
    """The metric of a module on a fold, or on the first batches of it."""
    return value_of(validated(task, module, fold, batches), task.metric)


def validated(task: Task, module: Any, fold: int, batches: int | None = None, own: bool = False) -> dict[str, Any]:
    """What validation logs on a fold; with `own`, by the module's own validation step in any case."""
    if task.metric.name == LOSS and not own:
        vars(module)["validation_step"] = _held_out(module)
    trainer = task.trainer(limit_val_batches=batches or max(4, int(_VALIDATE * task.run_steps)))
    trainer.validate(module, **task.judged(fold), verbose=False)
    return dict(trainer.callback_metrics)


def _held_out(module: Any) -> Any:
    """A validation step that logs the loss of the training step; nothing trains in it."""
    takes = len(inspect.signature(module.training_step).parameters)

    def validation_step(batch: Any, batch_idx: int) -> None:
        out = module.training_step(*(batch, batch_idx)[:takes])
        loss = out["loss"] if isinstance(out, dict) else out
        module.log(LOSS, loss, on_step=False, on_epoch=True)

    return validation_step
