"""What policies are bound to: the names and stages of a model, which several policies share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_freeze.errors import PlanError
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.model.patterns import Patterns, as_patterns, select_names
from lightning_freeze.schedule.moments import Moment, Progress
from lightning_freeze.stages.discovery import Discovery
from lightning_freeze.stages.naming import distinct
from lightning_freeze.stages.stage import BoundStage, Stage, Stages, as_stage, is_named

NextStart = Callable[[Progress], Moment | None]  # of `Policy.next_start`


class Context:
    """A model as policies see it while they are bound.

    Args:
        model: the module whose parameters are named.
        shared: stages that policies of the run share (`LayerwiseLR` uses those of `GradualUnfreeze`).
        discovery: discovers stages.
        next_starts: functions that return when each policy of the run unfreezes something next.
    """

    def __init__(
        self,
        model: nn.Module,
        shared: Sequence[Stages] = (),
        discovery: Discovery | None = None,
        next_starts: Sequence[NextStart] = (),
    ) -> None:
        self.model = model
        self.shared = list(shared)
        self.next_starts = list(next_starts)
        self.index = ModelIndex(model)
        self.discovery = discovery or Discovery()

    def select(self, patterns: Patterns, owner: str) -> list[str]:
        """The names of the selected parameters.

        Raises:
            PatternError: a pattern matches nothing.
        """
        return select_names(self.index, patterns, owner)

    def stages(self, stages: Stages, owner: str) -> list[BoundStage]:
        """Bind stages, head first. A parameter selected by several stages belongs to the first of them.

        Raises:
            PatternError: a pattern matches nothing.
            PlanError: a stage has no parameters of its own, or two stages have the same name.
        """
        bound: list[BoundStage] = []
        taken: set[str] = set()
        for stage in self._list(stages, owner):
            patterns = as_patterns(stage.patterns)
            chosen = self.select(patterns, f"{owner} stage '{stage.name}'")
            names = tuple(name for name in chosen if name not in taken)
            if not names:
                raise PlanError(
                    f"{owner} stage '{stage.name}': its patterns {patterns} leave it no parameters"
                    + (
                        f", all {len(chosen)} belong to earlier stages.\n  Put the narrower stage first"
                        if chosen
                        else ".\n  Look at its `!` patterns"
                    )
                )
            taken.update(names)
            limits = stage.factor, stage.max_epochs, stage.patience
            bound.append(BoundStage(stage.name, tuple(patterns), names, *limits, named=is_named(stages)))
        names_of_stages = [stage.name for stage in bound]
        if twice := {name for name in names_of_stages if names_of_stages.count(name) > 1}:
            raise PlanError(f"{owner}: several stages are called {sorted(twice)}.\n  Give each Stage a name of its own")
        return bound

    def stages_beside(self, own: Stages | None, owner: str) -> Stages:
        """The given stages, else those that another policy shares, else "auto".

        Raises:
            PlanError: several policies share different stages.
        """
        if own is not None:
            return own
        if any(stages != self.shared[0] for stages in self.shared):
            raise PlanError(
                f"{owner}: several GradualUnfreeze with different stages are beside it.\n  Give it stages=..."
            )
        return self.shared[0] if self.shared else "auto"

    def _list(self, stages: Stages, owner: str) -> list[Stage]:
        if not isinstance(stages, str | int):
            return _distinct([as_stage(stage, place, owner) for place, stage in enumerate(stages)], stages)
        return self.discovery.stages(self.index, None if isinstance(stages, str) else stages)


def _distinct(stages: Sequence[Stage], given: Sequence[Any]) -> list[Stage]:
    """Make the names unique that were derived from patterns."""
    made = {place for place, stage in enumerate(given) if not isinstance(stage, Stage | dict)}
    names = distinct([stage.name for stage in stages])
    return [replace(stage, name=names[place]) if place in made else stage for place, stage in enumerate(stages)]
