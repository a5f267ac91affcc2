"""The stages that nobody named, found once for all policies of a run."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.errors import PlanError
from lightning_freeze.model.index import ModelIndex, check_initialized
from lightning_freeze.stages.discover import check_most, usage_of
from lightning_freeze.stages.looked_at import Look, in_order
from lightning_freeze.stages.stage import Stage

Listed = list[tuple[int | None, list[tuple[str, list[str]]]]]  # by the limit of their number: name and patterns


class StagesPending(PlanError):
    """Stages are asked for that only the first batch of the run will show."""


class Discovery:
    """Stages for `"auto"` and for a number: what can train, in the order of a forward with `example_input_array`.

    Attributes:
        remarks: what a user may not expect of them.
        thaw: whether what requires no gradient can train as well.
    """

    thaw: bool = False

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self._found: dict[int | None, list[Stage]] = {}
        self._look: Look | None = None

    def stages(self, index: ModelIndex, most: int | None) -> list[Stage]:
        """At most so many stages, the head first; found once.

        Raises:
            StagesPending: the first batch has to be looked at before.
        """
        if most not in self._found:
            check_most(most)
            check_initialized(index, "stages='auto'")
            if self._look is None:
                self._look = self.look(index)
            self._found[most] = self._look.stages(index, most)
        return self._found[most]

    def look(self, index: ModelIndex) -> Look:
        """See how what can train is ordered."""
        usage = usage_of(index)
        if not usage.first:
            self.remarks.append(
                f"Stages follow the order of registration: {index.model_name} has no example_input_array that would "
                "show how its layers follow one another."
            )
        return in_order(index, usage, can_train(index, thaw=self.thaw))

    # ---- checkpoints

    def record(self) -> Listed:
        """The stages that were found, in plain types."""
        return [(most, [(stage.name, list(stage.patterns)) for stage in found]) for most, found in self._found.items()]

    def load(self, record: Listed) -> None:
        """Take the stages of a checkpoint: a resumed run does not look again."""
        self._found = {most: [Stage(name, list(patterns)) for name, patterns in stages] for most, stages in record}


def can_train(index: ModelIndex, *, thaw: bool = False) -> Sequence[str]:
    """The parameters that require a gradient, or all; all of them where none does, so that the run can say so."""
    names = [name for name, parameter in index.parameters.items() if parameter.requires_grad or thaw]
    return names or list(index.parameters)
