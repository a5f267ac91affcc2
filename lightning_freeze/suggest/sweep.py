"""Range test: one short run with a rising learning rate, to find where training works and where it breaks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lightning_freeze.suggest.isolation import copy_of_module, seed_all
from lightning_freeze.suggest.trial import Task, running
from lightning_freeze.suggest.ways import Spec, make
from lightning_freeze.trainer._lightning import Callback

LOWEST, HIGHEST = 1e-5, 1.0  # first and last rate
_FALL = 0.98  # fraction of the loss at the start; a smaller decrease is noise
_SMOOTH = 0.8  # weight of earlier values in the running mean of the loss


@dataclass(frozen=True)
class Sweep:
    """The losses of a range test.

    Attributes:
        rates: learning rate of each step, ascending.
        losses: running mean of the training loss after each step.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def turning(self) -> float | None:
        """The rate at the lowest loss before it rose; None if it never decreased."""
        if len(self.losses) < 8:
            return None
        start = statistics.median(self.losses[:5])
        lowest = min(range(len(self.losses)), key=self.losses.__getitem__)
        if self.losses[lowest] >= _FALL * start:
            return None
        edge = max(place for place, loss in enumerate(self.losses) if loss <= start)
        return max(self.rates[lowest], self.rates[edge] / 10)  # with few batches, noise can cause an early minimum


def sweep(task: Task, specs: Sequence[Spec], steps: int, fold: int = 0) -> Sweep:
    """Raise the rate from `LOWEST` to `HIGHEST` in `steps` optimizer steps, on a copy; stops if the loss explodes.

    Source: Smith (2017), arXiv:1506.01186.
    """
    seed_all(task.seed)
    climb = Climb(steps)
    epochs = math.ceil(steps / task.epoch_steps) + 1
    trainer = task.trainer(
        [*make(specs), climb], max_epochs=epochs, max_steps=steps, limit_val_batches=0, gradient_clip_val=None
    )
    with suppress(Exception), running():  # an error here occurs again in a trial, which reports it
        trainer.fit(copy_of_module(task.module), **task.fed(fold))
    return Sweep(tuple(climb.rates), tuple(climb.losses))


class Climb(Callback):
    """Set the rates of a run instead of its schedulers, and record its losses."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._mean = 0.0
        self._bases: list[list[float]] = []

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        trainer.strategy.lr_scheduler_configs = []
        self._bases = [[float(group["lr"]) for group in one.param_groups] for one in trainer.optimizers]

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        rate = LOWEST * (HIGHEST / LOWEST) ** (trainer.global_step / max(1, self.steps - 1))
        for optimizer, bases in zip(trainer.optimizers, self._bases, strict=True):
            top = max(bases) or 1.0
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = rate * base / top

    def on_train_batch_end(self, trainer: Any, _: Any, outputs: Any, *__: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None or trainer.global_step <= len(self.rates):
            return
        count = len(self.losses) + 1
        self._mean = _SMOOTH * self._mean + (1 - _SMOOTH) * float(loss)
        mean = self._mean / (1 - _SMOOTH**count)
        self.rates.append(LOWEST * (HIGHEST / LOWEST) ** ((count - 1) / max(1, self.steps - 1)))
        self.losses.append(mean)
        if not math.isfinite(mean) or mean > 2 * max(self.losses[0], 1e-8):
            trainer.should_stop = True
