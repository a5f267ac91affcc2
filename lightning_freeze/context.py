"""What policies are bound to: the names of the model, and its stages, which several policies share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_freeze.errors import PatternError, PlanError
from lightning_freeze.policy import Policy
from lightning_freeze.selection import ModelIndex, Patterns, as_patterns, select_names
from lightning_freeze.stages import Stage, discover_stages

Discovered = dict[int | None, list[Stage]]  # by the limit of their number
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
            _as_stage(stage, place, owner)


def _as_stage(stage: Any, place: int, owner: str) -> Stage:
    if isinstance(stage, Stage):
        return stage
    if isinstance(stage, dict) and set(stage) == {"name", "patterns"}:
        return Stage(**stage)
    try:
        patterns = as_patterns(stage)
    except PatternError as error:
        raise PlanError(f"{owner} stage {place}: {error}") from None
    if not patterns:
        raise PlanError(f"{owner} stage {place} has no patterns")
    return Stage(patterns[0] if len(patterns) == 1 else f"{patterns[0]}+{len(patterns) - 1}", patterns)


class Context:
    """A model as policies see it while they are bound.

    Args:
        model: the module that names are of.
        policies: all policies of the run, so that one can look at another (`LayerwiseLR` at the stages beside it).
        discovered: what has been discovered in this model before; added to.
    """

    def __init__(self, model: nn.Module, policies: Sequence[Policy] = (), discovered: Discovered | None = None) -> None:
        self.model = model
        self.policies = policies
        self.index = ModelIndex(model)
        self._discovered: Discovered = {} if discovered is None else discovered

    def select(self, patterns: Patterns, owner: str) -> list[str]:
        """Parameter names that the patterns select.

        Raises:
            PatternError: a pattern matches nothing.
        """
        return select_names(self.index, patterns, owner)

    def stages(self, stages: Stages, owner: str) -> list[BoundStage]:
        """Stages, head first, disjoint: a parameter that several select belongs to the first of them.

        Raises:
            PatternError: a pattern matches nothing.
            PlanError: nothing is left of a stage, or two stages have one name.
        """
        bound: list[BoundStage] = []
        taken: set[str] = set()
        for stage in self._list(stages, owner):
            chosen = self.select(stage.patterns, f"{owner} stage '{stage.name}'")
            names = tuple(name for name in chosen if name not in taken)
            if not names:
                raise PlanError(
                    f"{owner} stage '{stage.name}': its patterns {list(stage.patterns)} leave it no parameters"
                    + (
                        f", all {len(chosen)} belong to earlier stages.\n  Put the narrower stage first"
                        if chosen
                        else ".\n  Look at its `!` patterns"
                    )
                )
            taken.update(names)
            bound.append(BoundStage(stage.name, tuple(stage.patterns), names))
        names_of_stages = [stage.name for stage in bound]
        if twice := {name for name in names_of_stages if names_of_stages.count(name) > 1}:
            raise PlanError(f"{owner}: several stages are called {sorted(twice)}.\n  Give each Stage a name of its own")
        return bound

    def _list(self, stages: Stages, owner: str) -> list[Stage]:
        if not isinstance(stages, str | int):
            return [_as_stage(stage, place, owner) for place, stage in enumerate(stages)]
        limit = None if isinstance(stages, str) else stages
        if limit not in self._discovered:
            self._discovered[limit] = discover_stages(self.model, max_stages=limit)
        return self._discovered[limit]
