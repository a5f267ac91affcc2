"""The moments at which stages start: pure arithmetic on the progress of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from lightning_freeze.arguments import is_number
from lightning_freeze.errors import PlanError
from lightning_freeze.schedule.calendar import Calendar

Unit = Literal["epoch", "step", "fraction"]

# Slack for converting a fraction of a run to a step, so that 0.7 * 10 steps gives step 7, not step 8.
_SLACK = 1e-9


@dataclass(frozen=True)
class Progress:
    """The progress of a run: zero-based `epoch` and optimizer steps done (`step`); if known, the total number of steps
    and the calendar of its epochs.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int | None = None
    calendar: Calendar | None = field(default=None, compare=False, repr=False)

    def ends_before(self, moment: Moment) -> bool:
        """Whether the run is planned to end before a moment; False if its length is unknown."""
        if self.calendar is None or math.isinf(self.calendar.end):
            return False
        return moment.step_of_each(self.calendar, self.total_steps) >= self.calendar.end


@dataclass(frozen=True)
class Moment:
    """A moment of a run, in epochs, in optimizer steps, or as a fraction of all optimizer steps."""

    value: float
    unit: Unit

    def reached(self, progress: Progress) -> bool:
        """Whether `progress` is at or past this moment."""
        if self.unit == "epoch":
            return progress.epoch >= self.value
        step = self.step(progress.total_steps)
        return step is not None and progress.step >= step

    def step(self, total_steps: int | None) -> int | None:
        """The optimizer step of this moment; None for an epoch, or if the length of the run is still unknown."""
        if self.unit == "step":
            return int(self.value)
        if self.unit == "fraction" and (total_steps is not None or self.value == 0):
            return math.ceil(self.value * (total_steps or 0) - _SLACK)
        return None

    def step_of_each(self, calendar: Calendar, total_steps: int | None) -> float:
        """The steps that each optimizer does before this moment; infinite if unknown."""
        if self.unit == "epoch":
            return calendar.start_of(self.value)
        step = self.step(total_steps)
        return math.inf if step is None else math.ceil(step / calendar.optimizers)

    def text(self, total_steps: int | None = None) -> str:
        """For tables: `epoch 3`, `step 400`, `40% (step 400)`."""
        if self.unit != "fraction":
            return f"{self.unit} {self.value:g}"
        step = self.step(total_steps)
        return f"{self.value:.0%}" + ("" if step is None else f" (step {step})")


METRIC_DECIDES = Moment(math.inf, "epoch")  # a moment that is not known in advance


def count_started(moments: Sequence[Moment], progress: Progress) -> int:
    """How many of the moments a run has reached, in order: stages start one after the other."""
    return next((k for k, moment in enumerate(moments) if not moment.reached(progress)), len(moments))


def every(interval: int, unit: Unit, stages: int) -> list[Moment]:
    """Start one stage every `interval` epochs or optimizer steps, the first at 0."""
    return [Moment(k * interval, unit) for k in range(stages)]


def at(starts: Sequence[int | float], stages: int, owner: str) -> list[Moment]:
    """Start stages at the given times; the constructor has checked them with `check_starts`.

    Raises:
        PlanError: the numbers of starts and stages differ.
    """
    if len(starts) != stages:
        raise PlanError(
            f"{owner}: at={list(starts)} has {len(starts)} starts for {stages} stages.\n"
            "  Give one start per stage, the first 0"
        )
    unit: Unit = "fraction" if any(isinstance(start, float) for start in starts) else "epoch"
    return [Moment(start, unit) for start in starts]


def check_starts(starts: Sequence[int | float], owner: str) -> None:
    """Check a list of starts, before the stages are known.

    Raises:
        PlanError: it is empty, has other items than numbers, does not begin with 0, decreases, or has fractions
            above 1.
    """
    if not starts or any(isinstance(start, bool) or not isinstance(start, int | float) for start in starts):
        raise PlanError(f"{owner}: at={starts!r} must be a list of numbers, one start per stage")
    if starts[0] != 0:
        raise PlanError(f"{owner}: at={list(starts)} must begin with 0: the first stage trains from the start")
    if not all(earlier <= later for earlier, later in pairwise(starts)):
        raise PlanError(f"{owner}: at={list(starts)} must not decrease")
    if any(isinstance(start, float) for start in starts) and starts[-1] > 1:
        raise PlanError(
            f"{owner}: at={list(starts)} holds a float, so all of it are fractions of the run, and {starts[-1]} is "
            "beyond its end.\n  Use integers for epochs, or fractions between 0 and 1"
        )


def spread(curve: str, span: Sequence[float], stages: int) -> list[Moment]:
    """Spread stages over a part of the run: stage k starts when `k / stages` of them should have started.

    `linear` gives each stage an equal share of the span; `cosine` follows (1 - cos(pi t)) / 2: slow at both ends,
    fast in the middle. The first stage always starts at 0.
    """
    start, stop = span

    def place(share: float) -> float:
        return share if curve == "linear" else math.acos(1 - 2 * share) / math.pi

    return [Moment(0.0 if k == 0 else start + (stop - start) * place(k / stages), "fraction") for k in range(stages)]


def check_span(span: Sequence[float], owner: str) -> None:
    """Refuse a span that is not an ordered pair of fractions.

    Raises:
        PlanError: `0 <= start < stop <= 1` does not hold.
    """
    pair = isinstance(span, Sequence) and len(span) == 2 and all(map(is_number, span))
    if not pair or not 0 <= span[0] < span[1] <= 1:
        raise PlanError(f"{owner}: span={span!r} must be a pair of fractions of the run, 0 <= start < stop <= 1")
