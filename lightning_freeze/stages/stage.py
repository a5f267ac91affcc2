"""Stages: as named by a user, and bound to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from lightning_freeze import arguments
from lightning_freeze.errors import PatternError, PlanError
from lightning_freeze.model.patterns import as_patterns, as_strings
from lightning_freeze.representation import given, table_of
from lightning_freeze.stages.naming import stage_name


@dataclass(frozen=True)
class Stage:
    """Parameters that are unfrozen together, optionally with their own rate factor and limits.

    Args:
        name: short and unique among the stages of a run; it appears in tables and metric names.
        patterns: a pattern or a list of patterns (see `select`).
        factor: factor of the stage's learning rate, greater than 0. It replaces all other factors, such as `decay` and
            `multipliers` of a `LayerwiseLR`; None: those apply.
        max_epochs: with a metric trigger, the maximum length of the stage in epochs; None: the callback's value.
        patience: with a metric trigger, the validations without improvement that end the stage; None: the callback's
            value.

    Raises:
        PlanError: the name or the patterns are empty, or a value is out of range.
        PatternError: a pattern cannot be parsed.

    Examples:
        >>> Stage("late", ["model.layer4", "!model.layer4.0"])
        Stage(name='late', patterns=['model.layer4', '!model.layer4.0'])
        >>> Stage("head", "model.fc", factor=10.0, patience=2)
        Stage(name='head', patterns=['model.fc'], factor=10.0, patience=2)
    """

    name: str
    patterns: str | list[str]  # a list after construction
    factor: float | None = None
    max_epochs: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.patterns, str):  # a list of its characters would be a surprise
            object.__setattr__(self, "patterns", [self.patterns])
        if not isinstance(self.name, str) or not self.name:
            raise PlanError(f"a stage needs a name, got {self.name!r}")
        if not self.patterns or not all(isinstance(pattern, str) and pattern for pattern in self.patterns):
            raise PlanError(f"stage '{self.name}' needs a list of patterns, got {self.patterns!r}")
        as_patterns(self.patterns, f"stage '{self.name}'")
        self._check_numbers()

    def __repr__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"Stage({', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)})"

    def _repr_html_(self) -> str:
        return table_of(f"Stage {self.name}", given(self))

    def _check_numbers(self) -> None:
        owner = f"stage '{self.name}'"
        if self.factor is not None:
            arguments.check_number(self.factor, "factor", owner)
            if self.factor <= 0:
                raise PlanError(
                    f"{owner}: factor must be greater than 0, got {self.factor}.\n  To freeze it, leave it out of the "
                    "stages"
                )
        if self.max_epochs is not None:
            arguments.check_positive(self.max_epochs, "max_epochs", owner)
        if self.patience is not None:
            arguments.check_positive(self.patience, "patience", owner, minimum=0)


Named = Sequence[str | Sequence[str] | Stage]
Stages = str | int | Named


def is_named(stages: Stages) -> TypeGuard[Named]:
    """Whether the user named the stages; otherwise they are discovered."""
    return not isinstance(stages, str | int)


@dataclass(frozen=True)
class BoundStage:
    """A stage and the names of its parameters.

    Attributes:
        name: as in `Stage`.
        patterns: as in `Stage`.
        names: its parameters; a parameter selected by several stages belongs to the first.
        factor: as in `Stage`.
        max_epochs: as in `Stage`.
        patience: as in `Stage`.
        named: whether the user named it; False for a discovered stage.
    """

    name: str
    patterns: tuple[str, ...]
    names: tuple[str, ...]
    factor: float | None = None
    max_epochs: int | None = None
    patience: int | None = None
    named: bool = False


def check_stages(stages: Stages, owner: str, *, limits: bool = True) -> None:
    """Refuse an invalid `stages` argument.

    Args:
        stages: the argument of a callback.
        owner: the callback, for error messages.
        limits: whether a stage may carry `max_epochs` and `patience`.

    Raises:
        PlanError: it is neither "auto", nor a whole number of at least 1, nor a non-empty list.
    """
    wrong = isinstance(stages, bool) or (isinstance(stages, str) and stages != "auto")
    if wrong or (isinstance(stages, int) and stages < 1) or not isinstance(stages, str | int | Sequence):
        raise PlanError(
            f"{owner}: stages={stages!r} must be 'auto', a number of stages of at least 1, or a list of stages "
            "(a pattern, a list of patterns, or a Stage each), the head first"
        )
    if is_named(stages):
        if not stages:
            raise PlanError(f"{owner}: stages=[] is empty.\n  Name at least one stage, or use 'auto'")
        for place, given in enumerate(stages):
            stage = as_stage(given, place, owner)
            if not limits and (stage.max_epochs is not None or stage.patience is not None):
                raise PlanError(
                    f"{owner} stage '{stage.name}': max_epochs and patience can be used only with "
                    "GradualUnfreeze(monitor=...), the name of a logged metric"
                )


def as_stage(stage: Any, place: int, owner: str) -> Stage:
    """Convert an entry of a list of stages to a `Stage`.

    Raises:
        PlanError: it is neither a pattern, nor a list of patterns, nor a stage.
        PatternError: a pattern cannot be parsed.
    """
    if isinstance(stage, Stage):
        return stage
    if isinstance(stage, dict) and {"name", "patterns"} <= set(stage) <= {field.name for field in fields(Stage)}:
        return Stage(**stage)
    try:
        patterns = as_strings(stage)
    except PatternError as error:
        raise PlanError(f"{owner} stage {place}: {error}") from None
    as_patterns(patterns, f"{owner} stage {place}")
    if not patterns:
        raise PlanError(f"{owner} stage {place} has no patterns")
    return Stage(stage_name(patterns), patterns)
