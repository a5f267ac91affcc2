"""Train a few stages at a time, in turn, with optimizer state for the active ones only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal

from lightning_freeze import arguments
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row, Wants
from lightning_freeze.errors import PlanError
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.model.index import Place
from lightning_freeze.model.patterns import as_patterns
from lightning_freeze.optim.slots import PLACEMENTS
from lightning_freeze.schedule.moments import Moment, Progress
from lightning_freeze.stages.stage import BoundStage, Stage, check_stages
from lightning_freeze.trainer.callback import FreezeCallback

_ORDERS = ("random", "ascending", "descending")


class RotatingUnfreeze(FreezeCallback):
    """Train `active` stages at a time and change them every few steps.

    "random" draws stages each time (LISA, Pan et al., 2024, arXiv:2403.17919). "ascending" goes from the input to the
    head, "descending" from the head to the input, and then starts again (BAdam, Luo et al., 2024, arXiv:2404.02827).
    Gradients and optimizer state exist only for active stages, which bounds the memory. The active stages depend only
    on `seed` and the step: they are the same on all ranks and after a resume.

    Args:
        stages: as in `GradualUnfreeze`, head first. Parameters in no stage stay frozen.
        active: number of stages that train at a time.
        always: patterns (see `select`) of parameters that always train (embeddings, head, norms). A stage without
            other parameters does not take part.
        every_n_train_steps: optimizer steps (`trainer.global_step`) between changes.
        order: "random", "ascending" or "descending".
        optimizer_state: what happens to the optimizer state of a stage that stops: delete it ("drop"), "keep" it on
            the device, or move it to host memory ("cpu"). Only "drop" bounds the total memory.
        seed: seed of the random order.
        eval_frozen: whether frozen modules run in eval mode.
        verbose: print the table at the start and a line at each change, on rank 0.
        thaw: whether parameters that required no gradient before the fit train as well. They are frozen again
            afterwards.

    Raises:
        PlanError: the arguments cannot work; at setup, there are fewer stages than `active`.
        PatternError: at setup, a pattern matches nothing.

    Examples:
        >>> RotatingUnfreeze(active=2, always=["model.embed", "model.head"], order="ascending").every_n_train_steps
        100
    """

    def __init__(
        self,
        stages: str | int | Sequence[str | Sequence[str] | Stage] = "auto",
        active: int = 1,
        always: str | list[str] | None = None,
        every_n_train_steps: int = 100,
        order: Literal["random", "ascending", "descending"] = "random",
        optimizer_state: Literal["keep", "drop", "cpu"] = "drop",
        seed: int = 0,
        eval_frozen: bool = True,
        verbose: bool = True,
        thaw: bool = False,
    ) -> None:
        check_stages(stages, self.title, limits=False)
        arguments.check_flag(thaw, "thaw", self.title)
        arguments.check_positive(active, "active", self.title)
        arguments.check_positive(every_n_train_steps, "every_n_train_steps", self.title)
        arguments.check_choice(order, _ORDERS, "order", self.title)
        arguments.check_choice(optimizer_state, PLACEMENTS, "optimizer_state", self.title)
        arguments.check_flag(eval_frozen, "eval_frozen", self.title)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise PlanError(f"{self.title}: seed must be a whole number, got {seed!r}")
        self.stages = stages
        self.active = active
        self.always = always
        self.every_n_train_steps = every_n_train_steps
        self.order = order
        self.optimizer_state = optimizer_state
        self.seed = seed
        self.eval_frozen = eval_frozen
        self.verbose = verbose
        self.thaw = thaw
        as_patterns([] if always is None else always, f"{self.title} always")
        self._bound: list[BoundStage] = []
        self._always: tuple[str, ...] = ()
        self._all: frozenset[str] = frozenset()
        self._now: tuple[int, Wants] | None = None

    def bind(self, context: Context) -> Binding:
        self._always = tuple(context.select(self.always, f"{self.title} always") if self.always else ())
        self._bound = []
        for stage in context.stages(self.stages, self.title):
            names = tuple(name for name in stage.names if name not in set(self._always))
            if names:
                self._bound.append(replace(stage, names=names))
        if len(self._bound) < self.active:
            raise PlanError(
                f"{self.title}: active={self.active} stages are to train at a time, and there are {len(self._bound)}"
                f"{' beside those in always' if self.always else ''}.\n  Use fewer, or give a longer list of stages"
            )
        self._all = frozenset(context.index.parameters)
        self._now = None
        always = [BoundStage("always", (), self._always, named=True)] if self._always else []
        return Binding.of_stages([*self._bound, *always], thaw=self.thaw, freezes=self._planned())

    def _planned(self) -> tuple[frozenset[str], ...]:
        """The planned sets: each stage alone; several active stages can be in any combination."""
        alone = [self._all.difference(self._always, stage.names) for stage in self._bound]
        return tuple(alone) if self.active == 1 else (frozenset.intersection(*alone),)

    def wants(self, progress: Progress) -> Wants:
        period = progress.step // self.every_n_train_steps
        if self._now is None or self._now[0] != period:
            trained = [name for place in self._drawn(period) for name in self._bound[place].names]
            frozen = self._all.difference(self._always, trained)
            self._now = period, Wants(frozen, self.optimizer_state)
        return self._now[1]

    def _drawn(self, period: int) -> list[int]:
        """Indices of the stages (head first) that train in a period; a pure function of the period."""
        stages = len(self._bound)
        if self.order == "random":
            draws = [hashlib.sha256(f"{self.seed}/{period}/{place}".encode()).digest() for place in range(stages)]
            return sorted(sorted(range(stages), key=draws.__getitem__)[: self.active])
        turn = [(period * self.active + k) % stages for k in range(self.active)]
        return turn if self.order == "descending" else [stages - 1 - place for place in turn]

    def holds(self, view: FrozenView) -> set[Place]:
        return view.frozen_modules(self._now[1].frozen) if self.eval_frozen and self._now else set()

    def next_step(self, progress: Progress) -> float:
        return (progress.step // self.every_n_train_steps + 1) * self.every_n_train_steps

    def next_start(self, progress: Progress) -> Moment | None:
        period = progress.step // self.every_n_train_steps
        now = self._drawn(period)
        if self.active >= len(self._bound):
            return None
        later = next(other for other in count(period + 1) if self._drawn(other) != now)
        return Moment(later * self.every_n_train_steps, "step")

    # ---- tables, checkpoints, the end

    def rows(self, progress: Progress) -> list[Row]:
        when = f"{self.active} of {len(self._bound)} every {self.every_n_train_steps} steps, {self.order}"
        rows = [Row(stage.name, stage.patterns, when, stage.names) for stage in self._bound]
        return [*rows, Row("always", as_patterns(self.always), "always", self._always)] if self.always else rows

    def foreseen(self, progress: Progress) -> list[str]:
        rounds = -(-len(self._bound) // self.active)  # number of periods until every stage has trained
        last = Moment((rounds - 1) * self.every_n_train_steps, "step")
        if self.order == "random" or progress.calendar is None or not progress.ends_before(last):
            return []
        steps = int(progress.calendar.end * progress.calendar.optimizers)
        missing = len(self._bound) - (-(-steps // self.every_n_train_steps)) * self.active
        return [
            f"{self.title}: the run ends after {steps} optimizer steps, before the first round does, with {missing} of "
            f"{len(self._bound)} stages never trained.\n  Train longer, or change stages more often"
        ]

    def warnings(self, progress: Progress) -> list[str]:
        started = ((max(progress.step, 1) - 1) // self.every_n_train_steps + 1) * self.active
        missing = len(self._bound) - started
        if self.order == "random" or missing <= 0:
            return []
        return [
            f"{self.title}: the run ended after {progress.step} optimizer steps, before the first round did: "
            f"{missing} of {len(self._bound)} stages never trained.\n  Train longer, or change stages more often"
        ]

    @property
    def signature(self) -> Any:
        draw = f"{self.active} every {self.every_n_train_steps} steps" + (
            f", seed {self.seed}" if self.order == "random" else ""
        )
        staged = [[stage.name, list(stage.patterns)] for stage in self._bound]
        return [*staged, ["always", as_patterns(self.always or [])], [self.order, draw]]
