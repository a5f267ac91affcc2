"""Gradual unfreezing: the head trains first, and the stages below it follow one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from torch.optim import Optimizer

from lightning_freeze import arguments
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row, Wants
from lightning_freeze.errors import PlanError
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.model.index import Place
from lightning_freeze.optim.slots import Slot
from lightning_freeze.schedule import moments
from lightning_freeze.schedule.moments import Moment, Progress
from lightning_freeze.schedule.plateau import Plateau
from lightning_freeze.stages.stage import BoundStage, Stage, Stages, check_stages
from lightning_freeze.trainer.callback import FreezeCallback

_TRIGGERS = ("every_n_epochs", "every_n_train_steps", "at", "curve", "monitor")
_OF_MONITOR = {"mode": "min", "patience": 3, "min_delta": 0.0, "max_epochs_per_stage": None, "restore_best": False}


class GradualUnfreeze(FreezeCallback):
    """Unfreeze a model stage by stage, head first (Howard and Ruder, 2018, arXiv:1801.06146).

    Give at most one trigger. Without one, one stage is unfrozen per epoch. Parameters in no stage stay frozen.

    Args:
        stages: a list of stages, the one that trains first (the head) first; each is a pattern, a list of patterns or
            a `Stage`. "auto" discovers the stages; a number discovers at most that many. `factor`, `max_epochs` and
            `patience` of a `Stage` override the settings of this callback and of others.
        every_n_epochs: unfreeze a stage every n epochs.
        every_n_train_steps: unfreeze a stage every n optimizer steps (`trainer.global_step`).
        at: the start of each stage, non-decreasing, the first 0. Integers are epochs. If any value is a float, all
            are fractions of the optimizer steps of the run.
        curve: "linear" or "cosine": spread the stages over `span`.
        span: start and end of the part of the run, as fractions, for `curve`.
        monitor: name of a logged metric. A stage ends when the metric has not improved for `patience` validations;
            the next stage starts with the next epoch.
        mode: with `monitor`, "min" or "max": the direction in which the metric improves.
        patience: with `monitor`, the validations without improvement that end a stage; 0 is the same as 1.
        min_delta: with `monitor`, the smallest change that counts as an improvement, in units of the metric.
        max_epochs_per_stage: with `monitor`, the maximum length of a stage in epochs.
        restore_best: with `monitor`, restore the best weights of a stage and their optimizer state when it ends.
        warmup_steps: the k-th optimizer step after unfreezing uses min(1, k / warmup_steps) of the rate. The first
            stage has no warm-up.
        eval_frozen: whether frozen modules run in eval mode: BatchNorm uses and keeps its statistics, Dropout is off.
        verbose: print the table of stages at the start and a line at each change, on rank 0.
        thaw: whether stages also unfreeze parameters that required no gradient before the fit, such as the base
            weights under adapters. They are frozen again after the fit.

    Raises:
        PlanError: there are several triggers, or the arguments cannot work.
        PatternError: at setup, a pattern matches nothing.

    Examples:
        >>> GradualUnfreeze(["model.fc", "model.layer4", "model.layer3"], every_n_epochs=2).title
        'GradualUnfreeze'
        >>> GradualUnfreeze(at=[0, 5, 3])
        Traceback (most recent call last):
        ...
        lightning_freeze.errors.PlanError: GradualUnfreeze: at=[0, 5, 3] must not decrease
    """

    def __init__(
        self,
        stages: str | int | Sequence[str | Sequence[str] | Stage] = "auto",
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        at: list[int | float] | None = None,
        curve: Literal["linear", "cosine"] | None = None,
        span: tuple[float, float] = (0.0, 1.0),
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        max_epochs_per_stage: int | None = None,
        restore_best: bool = False,
        warmup_steps: int = 0,
        eval_frozen: bool = True,
        verbose: bool = True,
        thaw: bool = False,
    ) -> None:
        moments.check_span(span, self.title)
        self.stages = stages
        self.every_n_epochs = every_n_epochs
        self.every_n_train_steps = every_n_train_steps
        self.at = at
        self.curve = curve
        self.span = float(span[0]), float(span[1])
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.min_delta = min_delta
        self.max_epochs_per_stage = max_epochs_per_stage
        self.restore_best = restore_best
        self.warmup_steps = warmup_steps
        self.eval_frozen = eval_frozen
        self.verbose = verbose
        self.thaw = thaw
        _check_arguments(self)
        self._bound: list[BoundStage] = []
        self._moments: list[Moment] = []
        self._frozen_after: list[frozenset[str]] = []
        self._ramps: frozenset[str] = frozenset()
        self._started = 1
        self._plateau = Plateau()
        self._reasons: list[str] = []

    def check_trainer(self, trainer: Any) -> None:
        if self.monitor is not None and not trainer.enable_validation and not trainer.fast_dev_run:
            raise PlanError(
                f"{self.title}: monitor='{self.monitor}' is checked after each validation, and this run has none.\n"
                "  Pass a validation dataloader, or use another trigger"
            )
        if self.needs_run_length and trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise PlanError(
                f"{self.title}: a schedule in fractions of the run needs to know how long the run is, and this one has "
                "no end.\n  Set Trainer(max_epochs=...) or max_steps, or give the schedule in epochs or steps"
            )

    # ---- the policy

    def bind(self, context: Context) -> Binding:
        self._bound = context.stages(self.stages, self.title)
        self._moments = self._schedule(len(self._bound))
        frozen = frozenset(context.index.parameters)
        self._frozen_after = []
        for stage in self._bound:
            frozen -= frozenset(stage.names)
            self._frozen_after.append(frozen)
        self._ramps = frozenset(name for stage in self._bound[1:] for name in stage.names)
        return Binding.of_stages(self._bound, thaw=self.thaw, freezes=tuple(self._frozen_after))

    def _schedule(self, stages: int) -> list[Moment]:
        if self.at is not None:
            return moments.at(self.at, stages, self.title)
        if self.curve is not None:
            return moments.spread(self.curve, self.span, stages)
        if self.every_n_train_steps is not None:
            return moments.every(self.every_n_train_steps, "step", stages)
        return moments.every(self.every_n_epochs or 1, "epoch", stages)

    @property
    def needs_run_length(self) -> bool:
        return self.curve is not None or (self.at is not None and any(isinstance(start, float) for start in self.at))

    @property
    def shared_stages(self) -> Stages | None:
        return self.stages

    def wants(self, progress: Progress) -> Wants:
        started = max(self._started, self._count(progress))  # a run that becomes longer must not freeze a stage again
        finished = self._bound[self._started - 1 : started - 1] if self.monitor is not None else []
        self._reasons = [self._why(stage) for stage in finished]
        self._started = started
        restore = self.snapshot if self._plateau.stage < self._started - 1 else None
        return Wants(self._frozen_after[self._started - 1], restore=restore)

    def _count(self, progress: Progress) -> int:
        if self.monitor is None:
            return max(1, moments.count_started(self._moments, progress))
        return self._plateau.started(progress.epoch, [self._limit(stage) for stage in self._bound])

    def _limit(self, stage: BoundStage) -> int | None:
        return self.max_epochs_per_stage if stage.max_epochs is None else stage.max_epochs

    def _patience(self, stage: BoundStage) -> int:
        return max(1, self.patience if stage.patience is None else stage.patience)

    def holds(self, view: FrozenView) -> set[Place]:
        return view.frozen_modules(self._frozen_after[self._started - 1]) if self.eval_frozen else set()

    def next_step(self, progress: Progress) -> float:
        if self.monitor is not None or self._started == len(self._moments):
            return float("inf")
        step = self._moments[self._started].step(progress.total_steps)
        return float("inf") if step is None or self._moments[self._started].unit == "epoch" else step

    def next_start(self, progress: Progress) -> Moment | None:
        started = max(self._started, self._count(progress)) if self._bound else 1
        if self.monitor is not None:
            return None if started == len(self._bound) else moments.METRIC_DECIDES
        return self._moments[started] if started < len(self._moments) else None

    # ---- warm-up

    @property
    def shapes_steps(self) -> bool:
        return self.warmup_steps > 0

    def step_factors(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> Sequence[float] | None:
        ramp = [
            min(1.0, (steps - slot.since + 1) / self.warmup_steps) if self._ramps.intersection(slot.names[:1]) else 1.0
            for slot in slots
        ]
        return ramp if min(ramp) < 1 else None

    # ---- the metric trigger

    @property
    def watched_metric(self) -> str | None:
        return self.monitor

    def validated(
        self, metrics: Mapping[str, Any], epoch: int, take: Callable[[Collection[str]], dict[str, Any]]
    ) -> None:
        assert self.monitor is not None
        if self.monitor not in metrics:
            raise PlanError(
                f"{self.title}: monitor='{self.monitor}' is not among the metrics logged by the end of validation.\n"
                f"  Logged: {', '.join(sorted(metrics)) or 'none'}\n"
                f"  Log it in validation_step: self.log('{self.monitor}', ...)"
            )
        stage, value = self._started - 1, metrics[self.monitor]
        if stage == len(self._bound) - 1:
            return
        if self._plateau.stage != stage:
            self.snapshot = None
        signed = value if self.mode == "min" else -value
        best = self._plateau.check(signed, epoch, stage, self._patience(self._bound[stage]), self.min_delta)
        if best and self.restore_best:
            self.snapshot = take(self._frozen_after[stage])

    # ---- tables, checkpoints, the end

    def remarks(self) -> list[str]:
        last = self._bound[-1]
        limits = {"max_epochs": last.max_epochs, "patience": last.patience}
        given = [f"{name}={value}" for name, value in limits.items() if value is not None]
        if not given or self.monitor is None:
            return []
        return [
            f"{' and '.join(given)} of '{last.name}' {'has' if len(given) == 1 else 'have'} no effect: the last stage "
            "trains until the run ends. To end the run, use max_epochs of the Trainer or EarlyStopping."
        ]

    def rows(self, progress: Progress) -> list[Row]:
        return [
            Row(stage.name, stage.patterns, self._when(place, progress), stage.names, self._start(place))
            for place, stage in enumerate(self._bound)
        ]

    def _earliest(self, place: int) -> Moment:
        """The start of a stage; with a metric trigger, each stage before it takes at least one epoch."""
        return self._moments[place] if self.monitor is None else Moment(place, "epoch")

    def foreseen(self, progress: Progress) -> list[str]:
        late = [stage.name for place, stage in enumerate(self._bound) if progress.ends_before(self._earliest(place))]
        if not late:
            return []
        return [
            f"{self.title}: the run ends before its schedule does; never unfrozen: {', '.join(late)}.\n"
            "  Train longer, start the stages earlier, or give fewer stages"
        ]

    def _start(self, place: int) -> Moment | None:
        return self._moments[place] if self.monitor is None else None

    def _when(self, place: int, progress: Progress) -> str:
        if self.monitor is None or place == 0:
            return self._moments[place].text(progress.total_steps) if self.monitor is None else "epoch 0"
        before = self._bound[place - 1]
        latest = "" if self._limit(before) is None else f" or {self._limit(before)} epochs"
        return f"{self._patience(before)} checks of {self.monitor} without improvement{latest}"

    def _why(self, stage: BoundStage) -> str:
        """The reason why a stage with a metric trigger ended."""
        place = self._bound.index(stage)
        if place not in self._plateau.ends:
            return f"'{stage.name}' ended after its {self._limit(stage)} epochs"
        best = f" on {self._best}" if place == self._plateau.stage else ""
        return f"'{stage.name}' ended because {self.monitor} did not improve{best} in {self._patience(stage)} checks"

    @property
    def _best(self) -> str:
        return f"{self._plateau.best if self.mode == 'min' else -self._plateau.best:.4g}"

    def restored(self) -> None:
        super().restored()
        stage = self._bound[self._plateau.stage].name
        self._reasons.append(f"'{stage}' is back at its best weights ({self.monitor}={self._best})")

    def reasons(self) -> list[str]:
        return self._reasons

    def warnings(self, progress: Progress) -> list[str]:
        missing = [stage.name for stage in self._bound[self._started :]]
        if not missing:
            return []
        return [
            f"{self.title}: the run ended before its schedule did; never unfrozen: {', '.join(missing)}.\n"
            f"  It ended in epoch {progress.epoch} after {progress.step} optimizer steps. Train longer, or start the "
            "stages earlier"
        ]

    @property
    def signature(self) -> Any:
        return [[stage.name, list(stage.patterns)] for stage in self._bound]

    def state_of_run(self) -> dict[str, Any]:
        return {"started": self._started, "plateau": self._plateau.record()}

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        self._started = state.get("started", 1)
        self._plateau = Plateau(**state.get("plateau", {}))


def _check_arguments(given: GradualUnfreeze) -> None:
    owner = given.title
    check_stages(given.stages, owner, limits=given.monitor is not None)
    arguments.check_flag(given.thaw, "thaw", owner)
    arguments.check_flag(given.eval_frozen, "eval_frozen", owner)
    arguments.check_flag(given.restore_best, "restore_best", owner)
    arguments.check_number(given.min_delta, "min_delta", owner)
    triggers = [name for name in _TRIGGERS if getattr(given, name) is not None]
    if len(triggers) > 1:
        raise PlanError(f"{owner}: {' and '.join(triggers)} are given, and a schedule has one trigger.\n  Keep one")
    if not triggers:
        given.every_n_epochs = 1
    for name in ("every_n_epochs", "every_n_train_steps", "max_epochs_per_stage"):
        if getattr(given, name) is not None:
            arguments.check_positive(getattr(given, name), name, owner)
    arguments.check_positive(given.patience, "patience", owner, minimum=0)
    arguments.check_positive(given.warmup_steps, "warmup_steps", owner, minimum=0)
    arguments.check_choice(given.mode, ("min", "max"), "mode", owner)
    if given.curve is not None:
        arguments.check_choice(given.curve, ("linear", "cosine"), "curve", owner)
    elif given.span != (0.0, 1.0):
        raise PlanError(f"{owner}: span={given.span} has a meaning only with curve='linear' or curve='cosine'")
    if given.at is not None:
        moments.check_starts(given.at, owner)
    idle = [name for name, usual in _OF_MONITOR.items() if given.monitor is None and getattr(given, name) != usual]
    if idle:
        raise PlanError(f"{owner}: {' and '.join(idle)} can be used only with monitor=..., the name of a logged metric")
    if given.min_delta < 0:
        raise PlanError(f"{owner}: min_delta must not be negative, got {given.min_delta}")
