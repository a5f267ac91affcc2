"""A stage as a user names it, and bound to a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_freeze.errors import PatternError, PlanError
from lightning_freeze.model.patterns import as_patterns, as_strings

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


def metric_name(name: str) -> str:
    """A name made of what every logger accepts in the name of a metric: letters, digits, `_`, `.` and `-`.

    Example:
        >>> metric_name("model.layer?.*+2")
        'model.layer_._2'
    """
    return _UNFIT.sub("_", name)


@dataclass(frozen=True)
class Stage:
    """Parameters that are unfrozen together.

    Args:
        name: short and unique among the stages of a run; it goes into tables and metric names.
        patterns: what is in it (see `select`).

    Raises:
        PlanError: the name or the patterns are empty.
        PatternError: a pattern cannot be read.

    Example:
        >>> Stage("late", ["model.layer4", "!model.layer4.0"])
        Stage(name='late', patterns=['model.layer4', '!model.layer4.0'])
    """

    name: str
    patterns: list[str]

    def __post_init__(self) -> None:
        if isinstance(self.patterns, str):  # from YAML; a list of its characters would be a surprise
            object.__setattr__(self, "patterns", [self.patterns])
        if not isinstance(self.name, str) or not self.name:
            raise PlanError(f"a stage needs a name, got {self.name!r}")
        if not self.patterns or not all(isinstance(pattern, str) and pattern for pattern in self.patterns):
            raise PlanError(f"stage '{self.name}' needs a list of patterns, got {self.patterns!r}")
        as_patterns(self.patterns, f"stage '{self.name}'")


Stages = str | int | Sequence[str | Sequence[str] | Stage]


@dataclass(frozen=True)
class BoundStage:
    """A stage and the names of the parameters that are its own."""

    name: str
    patterns: tuple[str, ...]
    names: tuple[str, ...]


def check_stages(stages: Stages, owner: str) -> None:
    """Refuse what can be no list of stages.

    Raises:
        PlanError: it is neither "auto", nor a whole number of at least 1, nor a list that is not empty.
    """
    wrong = isinstance(stages, bool) or (isinstance(stages, str) and stages != "auto")
    if wrong or (isinstance(stages, int) and stages < 1) or not isinstance(stages, str | int | Sequence):
        raise PlanError(
            f"{owner}: stages={stages!r} must be 'auto', a number of stages of at least 1, or a list of stages "
            "(a pattern, a list of patterns, or a Stage each), the head first"
        )
    if not isinstance(stages, str | int):
        if not stages:
            raise PlanError(f"{owner}: stages=[] is empty.\n  Name at least one stage, or use 'auto'")
        for place, stage in enumerate(stages):
            as_stage(stage, place, owner)


def as_stage(stage: Any, place: int, owner: str) -> Stage:
    """An entry of a list of stages as a `Stage`.

    Raises:
        PlanError: it is no pattern, no list of patterns and no stage.
        PatternError: a pattern cannot be read.
    """
    if isinstance(stage, Stage):
        return stage
    if isinstance(stage, dict) and set(stage) == {"name", "patterns"}:
        return Stage(**stage)
    try:
        patterns = as_strings(stage)
    except PatternError as error:
        raise PlanError(f"{owner} stage {place}: {error}") from None
    as_patterns(patterns, f"{owner} stage {place}")
    if not patterns:
        raise PlanError(f"{owner} stage {place} has no patterns")
    return Stage(patterns[0] if len(patterns) == 1 else f"{patterns[0]}+{len(patterns) - 1}", patterns)
