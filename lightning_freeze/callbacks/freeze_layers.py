"""Freeze chosen layers for a part of the run, or for all of it."""

from __future__ import annotations

from typing import Literal

from lightning_freeze import arguments
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row, Wants
from lightning_freeze.errors import PlanError
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.model.index import Place
from lightning_freeze.model.patterns import as_patterns
from lightning_freeze.optim.slots import PLACEMENTS
from lightning_freeze.schedule.moments import Moment, Progress
from lightning_freeze.trainer.callback import FreezeCallback


class FreezeLayers(FreezeCallback):
    """Freeze the selected parameters while `start <= progress < stop`.

    If the run ends before `start` or `stop`, a warning says so at its start, and `lightning-freeze preview` shows it.

    Args:
        patterns: a pattern or a list of them (see `select`).
        start: first epoch or optimizer step in which they are frozen; zero-based.
        stop: first epoch or step in which they train again; None: never.
        unit: "epoch", or "step" for optimizer steps (`trainer.global_step`).
        eval_frozen: whether frozen modules run in eval mode.
        optimizer_state: what happens to the optimizer state on freezing: "keep" it on the device, move it to host
            memory ("cpu"), or delete it ("drop").
        verbose: print the table at the start and a line at each change, on rank 0.

    Raises:
        PlanError: the arguments cannot work.
        PatternError: at setup, a pattern matches nothing.

    Examples:
        >>> FreezeLayers(["model.backbone", "!model.backbone.layer4"], stop=5).stop
        5
    """

    def __init__(
        self,
        patterns: str | list[str],
        start: int = 0,
        stop: int | None = None,
        unit: Literal["epoch", "step"] = "epoch",
        eval_frozen: bool = True,
        optimizer_state: Literal["keep", "drop", "cpu"] = "keep",
        verbose: bool = True,
    ) -> None:
        if not as_patterns(patterns, self.title):
            raise PlanError(f"{self.title}: patterns is empty.\n  Name at least one parameter or module")
        arguments.check_positive(start, "start", self.title, minimum=0)
        arguments.check_choice(unit, ("epoch", "step"), "unit", self.title)
        arguments.check_flag(eval_frozen, "eval_frozen", self.title)
        arguments.check_choice(optimizer_state, PLACEMENTS, "optimizer_state", self.title)
        if stop is not None:
            arguments.check_positive(stop, "stop", self.title)
            if stop <= start:
                raise PlanError(f"{self.title}: stop={stop} must be after start={start}, both in {unit}s")
        self.patterns = patterns
        self.start = start
        self.stop = stop
        self.unit = unit
        self.eval_frozen = eval_frozen
        self.optimizer_state = optimizer_state
        self.verbose = verbose
        self._names: frozenset[str] = frozenset()
        self._wants = self._wants_nothing = Wants()
        self._active = False

    def bind(self, context: Context) -> Binding:
        self._names = frozenset(context.select(self.patterns, self.title))
        if not self._names:
            raise PlanError(
                f"{self.title}: patterns={self.patterns!r} leave nothing to freeze.\n  See the `!` patterns"
            )
        self._wants = Wants(self._names, self.optimizer_state)
        passing = self.stop is not None or self.start > 0
        plan = (frozenset[str](), self._names) if passing else (self._names,)
        return Binding(trains=self._names if passing else frozenset(), freezes=plan)

    def wants(self, progress: Progress) -> Wants:
        begun, ended = (
            moment is not None and Moment(moment, self.unit).reached(progress) for moment in (self.start, self.stop)
        )
        self._active = begun and not ended
        return self._wants if self._active else self._wants_nothing

    def holds(self, view: FrozenView) -> set[Place]:
        return view.frozen_modules(self._names) if self._active and self.eval_frozen else set()

    def next_step(self, progress: Progress) -> float:
        bounds = (self.start, self.stop) if self.unit == "step" else ()
        return min((bound for bound in bounds if bound is not None and bound > progress.step), default=float("inf"))

    def next_start(self, progress: Progress) -> Moment | None:
        stop = None if self.stop is None else Moment(self.stop, self.unit)
        return None if stop is None or stop.reached(progress) else stop

    def rows(self, progress: Progress) -> list[Row]:
        begin = f"from {self.unit} {self.start}" if self.start else ""
        end = "" if self.stop is None else f"until {self.unit} {self.stop}"
        when = " ".join(["frozen", *(filter(None, (begin, end)) if begin or end else ["throughout"])])
        return [Row(self.title, as_patterns(self.patterns), when, sorted(self._names))]

    def foreseen(self, progress: Progress) -> list[str]:
        ends = f"{self.title}: the run ends before its schedule does, and {self.patterns} was to be"
        if self.start > 0 and progress.ends_before(Moment(self.start, self.unit)):
            return [f"{ends} frozen from {self.unit} {self.start} on.\n  Train longer, or freeze earlier"]
        if self.stop is not None and progress.ends_before(Moment(self.stop - 1, self.unit)):
            return [f"{ends} unfrozen in {self.unit} {self.stop}.\n  Train longer, or unfreeze earlier"]
        return []

    def warnings(self, progress: Progress) -> list[str]:
        done = progress.step if self.unit == "step" else progress.epoch + 1
        where = f"the run ended before its schedule did, after {done} {self.unit}s"
        if done <= self.start and self.start > 0:
            return [f"{self.title}: {where}, and {self.patterns} was to be frozen from {self.unit} {self.start} on"]
        if self.stop is not None and done < self.stop:
            return [f"{self.title}: {where}, and {self.patterns} was to be unfrozen in {self.unit} {self.stop}"]
        return []
