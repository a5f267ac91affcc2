"""Discover stages once for all policies of a run."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.errors import PlanError
from lightning_freeze.model.dry_run import without_collection
from lightning_freeze.model.index import ModelIndex, check_initialized
from lightning_freeze.stages.discover import check_most, usage_of
from lightning_freeze.stages.looked_at import Look, in_order
from lightning_freeze.stages.stage import Stage

Listed = list[tuple[int | None, list[tuple[str, list[str]]]]]  # by the limit of their number: name and patterns


class StagesPending(PlanError):
    """The stages can be discovered only from the first batch of the run."""


class Discovery:
    """The stages for `"auto"` or a number: trainable parameters in order of use, or by distance to the loss.

    Attributes:
        remarks: sentences about stages that a user may not expect.
        thaw: whether parameters that require no gradient can train as well.
    """

    thaw: bool = False

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self._found: dict[int | None, list[Stage]] = {}
        self._look: Look | None = None

    @without_collection()
    def stages(self, index: ModelIndex, most: int | None) -> list[Stage]:
        """At most this many stages, head first. They are discovered once.

        Raises:
            StagesPending: the first batch is needed.
        """
        if most not in self._found:
            check_most(most)
            check_initialized(index, "stages='auto'")
            if self._look is None:
                self._look = self.look(index)
            self._found[most] = self._look.stages(index, most)
        return self._found[most]

    def look(self, index: ModelIndex) -> Look:
        """Determine the order of the parameters that can train."""
        usage = usage_of(index)
        if not usage.first:
            self.remarks.append(
                f"Stages follow the order of registration: {index.model_name} has no example_input_array that would "
                "show how its layers follow one another."
            )
        return in_order(index, usage, can_train(index, thaw=self.thaw))

    # ---- checkpoints

    def record(self) -> Listed:
        """The discovered stages as plain types."""
        return [(most, [(stage.name, list(stage.patterns)) for stage in found]) for most, found in self._found.items()]

    def load(self, record: Listed) -> None:
        """Load the stages of a checkpoint: a resumed run does not discover them again."""
        self._found = {most: [Stage(name, list(patterns)) for name, patterns in stages] for most, stages in record}


def can_train(index: ModelIndex, *, thaw: bool = False) -> Sequence[str]:
    """The parameters that require a gradient; all parameters with `thaw`, or if none requires one."""
    names = [name for name, parameter in index.parameters.items() if parameter.requires_grad or thaw]
    return names or list(index.parameters)
