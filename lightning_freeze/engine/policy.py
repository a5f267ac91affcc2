"""What a policy may say. A policy declares, `reconcile` makes it so: no policy mutates a model or an optimizer.

A policy is bound to a model once per fit (names become concrete, wrong ones raise) and is then asked, at any
moment of the run, what it wants. Its answers depend only on what it was bound to, on the progress of the run
and on its `state`, so that asking twice changes nothing and a resumed run gets the same answers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.engine.context import Context
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.optim.slots import Placement, Slot
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.stages.stage import Stages


@dataclass(frozen=True)
class Binding:
    """What of a policy stays the same for a whole fit.

    Attributes:
        labels: parameter -> the stage it belongs to; parameters of one label share a slot of the optimizer.
        factors: parameter -> factor of its learning rate; factors of several policies multiply.
        trains: parameters that the policy will unfreeze at some time, so they have to be in an optimizer.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    trains: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Wants:
    """What a policy wants now.

    Attributes:
        frozen: parameters that must not train.
        optimizer_state: where the optimizer state of parameters that leave goes.
        restore: a snapshot to bring back before anything else changes; `Policy.restored` hears when it is done.
    """

    frozen: frozenset[str] = frozenset()
    optimizer_state: Placement = "keep"
    restore: Mapping[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Change:
    """What one call of `reconcile` did; false when it did nothing.

    Attributes:
        unfrozen: parameters that began to train.
        frozen: parameters that stopped training.
        slots: names of the optimizer slots that were filled or emptied.
        reducer: whether the DDP wrapper was built anew.
        held: modules put in eval mode.
        released: modules given their mode back.
        restored: names of parameters and buffers that a snapshot was written to.
    """

    unfrozen: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    reducer: bool = False
    held: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        changed = self.unfrozen or self.frozen or self.slots or self.reducer or self.held or self.released
        return bool(changed or self.restored)


@dataclass(frozen=True)
class Row:
    """One line of the table at the start: what a policy will do, to what, and when."""

    name: str
    patterns: Sequence[str]
    when: str
    names: Sequence[str]
    keeps_frozen: bool = False


class Policy:
    """A declaration of what should train, how fast, and in which mode. Subclasses override what they need."""

    @property
    def title(self) -> str:
        """The name that tables and errors use for this policy."""
        return type(self).__name__

    def check_run(self, run: Any) -> None:
        """Refuse a run in which this policy cannot work, before the model is looked at.

        Args:
            run: the Lightning Trainer.

        Raises:
            PlanError: it cannot.
        """

    def bind(self, context: Context) -> Binding:
        """Resolve names against the model.

        Raises:
            FreezeError: a pattern matches nothing, or the arguments do not fit the model.
        """
        return Binding()

    @property
    def shared_stages(self) -> Stages | None:
        """The stages that policies beside this one may count by; None when it offers none."""
        return None

    def wants(self, progress: Progress) -> Wants:
        """What to freeze now."""
        return Wants()

    def restored(self) -> None:
        """The snapshot of `wants` has been brought back; do not ask for it again."""

    def holds(self, view: FrozenView) -> set[int]:
        """The modules to run in eval mode, given what trains now: places in `view.index.spans`."""
        return set()

    def changed(self, done: Change) -> None:
        """Hear what a call of `reconcile` did, after it did anything; for policies that watch, not decide."""

    def lean(self, view: FrozenView) -> set[int]:
        """The normalisation layers that, while they are held, should save no input for the backward pass."""
        return set()

    @property
    def needs_run_length(self) -> bool:
        """Whether `wants` depends on the number of optimizer steps of the whole run."""
        return False

    def check_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Refuse optimizers with which this policy cannot work, before they are split.

        Raises:
            OptimizerError: it cannot.
        """

    @property
    def idles(self) -> bool:
        """Whether `idle` is to be asked before each update; DDP then takes parameters that got no gradient."""
        return False

    def idle(self, optimizer: Optimizer) -> Collection[str]:
        """Parameters that must not move in the update about to happen, trainable as they are.

        Asked when the gradients are there, several times for one update.
        """
        return ()

    @property
    def shapes_steps(self) -> bool:
        """Whether `observe` and `step_factors` are to be asked before each update."""
        return False

    def observe(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> None:
        """Look at the gradients of the update about to happen, after `steps` earlier ones of this optimizer.

        An optimizer whose `step` calls that of its base class calls again, with the same `steps`.
        """

    def step_factors(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> Sequence[float] | None:
        """Factors of the rates of the slots for the next update, after `steps` earlier ones; None: all 1.

        Asked right before the update, and whenever somebody wants to know the rates.
        """
        return None

    def next_step(self, progress: Progress) -> float:
        """The optimizer step at which the answer of `wants` may change within an epoch; infinity if at none."""
        return float("inf")

    def rows(self, progress: Progress) -> list[Row]:
        """Lines of the table at the start."""
        return []

    def remarks(self) -> list[str]:
        """Lines under the table at the start: what a user may not expect."""
        return []

    def warnings(self, progress: Progress) -> list[str]:
        """What to say when the fit ends at `progress`, for example stages that never trained."""
        return []

    @property
    def signature(self) -> Any:
        """What a checkpoint must agree on to be resumed, as plain data; None when nothing needs to."""
        return None

    def state_of_run(self) -> dict[str, Any]:
        """What cannot be recomputed from the progress, as plain types."""
        return {}

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint; an empty one is the start of a run."""


def shared_stages(policies: Sequence[Policy]) -> list[Stages]:
    """The stages that policies of one run offer each other."""
    return [stages for policy in policies if (stages := policy.shared_stages) is not None]
