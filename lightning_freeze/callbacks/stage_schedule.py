"""A rate schedule for each stage, on top of the run's LR scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch.optim import Optimizer

from lightning_freeze import arguments
from lightning_freeze.engine.context import Context, NextStart
from lightning_freeze.engine.declarations import Binding, Row, Wants
from lightning_freeze.errors import PlanError
from lightning_freeze.optim.slots import Slot
from lightning_freeze.schedule.moments import METRIC_DECIDES, Progress
from lightning_freeze.schedule.shapes import SHAPES, Curve
from lightning_freeze.trainer.callback import FreezeCallback

_STARTS = {"slanted_triangular": 1 / 32}  # ratio of Howard and Ruder; others start as in OneCycleLR and fastai
_MOMENTA = (0.85, 0.95)


class StageSchedule(FreezeCallback):
    """Let the rate rise and fall within each stage, as a factor on top of the run's LR scheduler.

    A stage lasts from one unfreezing to the next, or to the end of the run. Step k of a stage with n optimizer steps
    (k = 0, 1, ...) is at k / n of the shape. "one_cycle" rises and falls along a cosine (Smith, 2018,
    arXiv:1803.09820; `torch.optim.lr_scheduler.OneCycleLR`; fastai's `fit_one_cycle`). "cosine" and "linear" rise
    linearly. "slanted_triangular" is the shape of ULMFiT (Howard and Ruder, 2018, arXiv:1801.06146). Factors are
    applied around each update, so schedulers do not see them.

    Args:
        shape: "one_cycle", "cosine", "linear" or "slanted_triangular".
        restart: "stage": every group restarts when a stage starts, and its cycle ends with the stage. "new": each
            group has one cycle, from its unfreezing to the end of the run.
        warmup: fraction of the length in which the rate rises, 0 to 1. A list has one value per stage; its last value
            applies to all later stages. `start_factor`, `peak_factor` and `final_factor` can be lists too.
        final_factor: factor at the end.
        length: length of a cycle in optimizer steps; None: as planned. It is required with restart="stage" if a metric
            ends stages, or if the run has no end.
        start_factor: factor at the start; None: 1/32 for "slanted_triangular", else 1/25.
        peak_factor: largest factor; `start_factor` and `final_factor` are relative to it.
        momentum: with "one_cycle", the momentum at the peak of the rate and at both ends. It sets `momentum`, or the
            first of `betas`, of groups where this is greater than 0. None changes nothing. A `OneCycleLR` that cycles
            the momentum takes precedence.
        verbose: print the table at the start, on rank 0.

    Raises:
        PlanError: the arguments cannot work; at the start, the length of a stage is unknown.

    Examples:
        >>> StageSchedule("slanted_triangular", restart="new", final_factor=1 / 32).warmup
        0.1
        >>> StageSchedule(warmup=1.5)
        Traceback (most recent call last):
        ...
        lightning_freeze.errors.PlanError: StageSchedule: warmup must be between 0 and 1, got 1.5
    """

    def __init__(
        self,
        shape: Literal["one_cycle", "cosine", "linear", "slanted_triangular"] = "one_cycle",
        restart: Literal["stage", "new"] = "stage",
        warmup: float | list[float] = 0.1,
        final_factor: float | list[float] = 0.0,
        length: int | None = None,
        start_factor: float | list[float] | None = None,
        peak_factor: float | list[float] = 1.0,
        momentum: tuple[float, float] | None = _MOMENTA,
        verbose: bool = True,
    ) -> None:
        self.shape = shape
        self.restart = restart
        self.warmup = warmup
        self.final_factor = final_factor
        self.length = length
        self.start_factor = start_factor
        self.peak_factor = peak_factor
        self.momentum = None if momentum is None else (float(momentum[0]), float(momentum[1]))
        self.verbose = verbose
        self._check_arguments()
        self._next_starts: list[NextStart] = []
        self._names: list[str] = []
        self._progress = Progress()
        self._end: float | None = None  # last computed end of the stage, in steps of each optimizer since the fit began
        self._before: float | None = None  # `trainer.global_step` when the first fit began

    def _check_arguments(self) -> None:
        owner = self.title
        arguments.check_choice(self.shape, SHAPES, "shape", owner)
        arguments.check_choice(self.restart, ("stage", "new"), "restart", owner)
        start = _STARTS.get(self.shape, 1 / 25) if self.start_factor is None else self.start_factor
        factors = {"start_factor": start, "peak_factor": self.peak_factor, "final_factor": self.final_factor}
        lists = {name: _listed(value, name, owner) for name, value in {"warmup": self.warmup, **factors}.items()}
        for name, values in lists.items():
            if any(value < 0 for value in values) or (name == "warmup" and max(values) > 1):
                bound = "between 0 and 1" if name == "warmup" else "at least 0"
                raise PlanError(f"{owner}: {name} must be {bound}, got {getattr(self, name)}")
            if len(values) > 1 and self.restart == "new":
                raise PlanError(
                    f"{owner}: {name}={values} has a value per stage, and with restart='new' groups of all stages have "
                    "one cycle.\n  Give one number, or use restart='stage'"
                )
        if self.length is not None:
            arguments.check_positive(self.length, "length", owner)
        if self.momentum is not None and not 0 < self.momentum[0] <= self.momentum[1] < 1:
            raise PlanError(f"{owner}: momentum={self.momentum} must be a pair with 0 < first <= second < 1")
        if self.shape != "one_cycle" and self.momentum not in (None, _MOMENTA):
            raise PlanError(f"{owner}: momentum={self.momentum} can be used only with shape='one_cycle'")
        stages = range(max(map(len, lists.values())))
        self._curves = [
            Curve(self.shape, *(values[min(stage, len(values) - 1)] for values in lists.values())) for stage in stages
        ]

    # ---- the policy

    def bind(self, context: Context) -> Binding:
        self._next_starts = context.next_starts
        self._names = list(context.index.parameters)
        if self.restart == "stage" and self.length is None and METRIC_DECIDES in self._starts_after(Progress()):
            raise PlanError(
                f"{self.title}: a metric decides when the stages of this run end, so their length is not known.\n"
                "  Give length=..., in optimizer steps, or restart='new' for one cycle to the end of the run"
            )
        return Binding()

    def _starts_after(self, progress: Progress) -> list[Any]:
        return [start for ask in self._next_starts if (start := ask(progress)) is not None]

    def wants(self, progress: Progress) -> Wants:
        self._progress, self._end = progress, None
        if self._before is None:
            self._before = float(progress.step)
        if progress.calendar is not None:
            self._length(0)  # raises before the first step
        return Wants()

    # ---- the factors of a step

    @property
    def shapes_steps(self) -> bool:
        return True

    def step_factors(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> Sequence[float] | None:
        return [self._curve(slot).at(steps - self._since(slot), self._length(self._since(slot))) for slot in slots]

    def step_options(
        self, optimizer: Optimizer, slots: Sequence[Slot], steps: int
    ) -> Sequence[Mapping[str, Any]] | None:
        if self.momentum is None or self.shape != "one_cycle":
            return None
        found = []
        for slot, group in zip(slots, optimizer.param_groups, strict=True):
            since = self._since(slot)
            momentum = self._curve(slot).momentum_at(steps - since, self._length(since), *self.momentum)
            found.append(_with_momentum(group, momentum))
        return found

    def _curve(self, slot: Slot) -> Curve:
        return self._curves[min(slot.stage, len(self._curves) - 1)]

    def _since(self, slot: Slot) -> int:
        return slot.stage_since if self.restart == "stage" else slot.since

    def _length(self, since: int) -> float:
        """The length of the cycle that began after `since` steps, in optimizer steps."""
        end = self._known_end()
        if self.length is not None and (self.restart == "new" or end == math.inf):
            return self.length
        if end == math.inf:
            raise PlanError(
                f"{self.title}: the length of the stage at epoch {self._progress.epoch}, step {self._progress.step} is "
                "not known: the run has no end, or its training data no length.\n  Give length=..., in optimizer "
                "steps, or a schedule in steps and Trainer(max_steps=...)"
            )
        return end - since

    def _known_end(self) -> float:
        """The end of the current cycle, in steps of each optimizer since the fit began; infinite if unknown."""
        if self._end is None:
            calendar, total = self._progress.calendar, self._progress.total_steps
            if calendar is None:
                return math.inf
            starts = self._starts_after(self._progress) if self.restart == "stage" else []
            ends = [calendar.end, *(start.step_of_each(calendar, total) for start in starts)]
            unknown = METRIC_DECIDES in starts
            self._end = math.inf if unknown else min(ends) - (self._before or 0.0) / calendar.optimizers
        return self._end

    # ---- tables, checkpoints

    def rows(self, progress: Progress) -> list[Row]:
        each = "in each stage" if self.restart == "stage" else "from each unfreezing on"
        return [Row(self.title, ["*"], f"{self.shape} {each}, {_text(self.warmup)} of it rising", self._names)]

    def remarks(self) -> list[str]:
        if self.length is None or self.restart == "new" or METRIC_DECIDES in self._starts_after(Progress()):
            return []
        return [f"{self.title}: length={self.length} is used only for a stage whose end is not known beforehand."]

    def state_of_run(self) -> dict[str, Any]:
        return {"before": self._before}

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        self._before = state.get("before")


def _listed(value: Any, name: str, owner: str) -> list[float]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise PlanError(f"{owner}: {name}=[] is empty.\n  Give a number, or one per stage")
    for one in values:
        arguments.check_number(one, name, owner)
    return [float(one) for one in values]


def _with_momentum(group: Mapping[str, Any], momentum: float) -> dict[str, Any]:
    """The momentum option of a group with a new value; empty if it has none, or a scheduler cycles it."""
    if "max_momentum" in group:  # OneCycleLR cycles it
        return {}
    betas = group.get("betas")
    if betas is not None and isinstance(betas[0], float) and betas[0] > 0:
        return {"betas": (momentum, *betas[1:])}
    return {"momentum": momentum} if group.get("momentum") else {}


def _text(part: float | list[float]) -> str:
    return ", ".join(f"{one:.0%}" for one in (part if isinstance(part, list) else [part]))
