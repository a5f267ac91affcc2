"""The interface of a policy. Policies declare and the `Reconciler` acts: no policy changes a model or an optimizer.

A policy is bound to a model once per fit: its patterns are resolved, and wrong ones raise. After that the
`Reconciler` asks it what it wants at any moment of the run. The answers depend only on the binding, the progress of
the run and the policy's own state. So asking twice changes nothing, and a resumed run gets the same answers.

A policy has three parts, with a default for every method: what to freeze (`Freezing`), what happens in an optimizer
step (`Stepping`), and what to report (`Speaking`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Change, Row, Wants
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.model.index import Place
from lightning_freeze.optim.slots import Slot
from lightning_freeze.schedule.moments import Moment, Progress
from lightning_freeze.stages.stage import Stages

Snapshot = Mapping[str, Any]  # of `engine.snapshot.take`


class Freezing:
    """What to freeze and when, which modules to hold in eval mode, and the state for checkpoints."""

    thaw: bool = False  # True: the policy also unfreezes parameters that required no gradient before the fit
    snapshot: Snapshot | None = None  # weights that the policy keeps to restore later; saved with each checkpoint

    @property
    def title(self) -> str:
        """The name of this policy in tables and errors."""
        return type(self).__name__

    def check_trainer(self, trainer: Any) -> None:
        """Refuse a Trainer that this policy cannot work with. Called before the model is examined.

        Args:
            trainer: the Lightning Trainer.

        Raises:
            PlanError: the policy cannot work with it.
        """

    def begin(self, trainer: Any) -> None:
        """Called when training begins, after names are bound and the first `reconcile`.

        Args:
            trainer: the Lightning Trainer.
        """

    def bind(self, context: Context) -> Binding:
        """Resolve patterns against the model.

        Raises:
            FreezeError: a pattern matches nothing, or the arguments do not fit the model.
        """
        return Binding()

    @property
    def shared_stages(self) -> Stages | None:
        """The stages that the policy shares with other policies of the run; None: it shares none."""
        return None

    @property
    def needs_run_length(self) -> bool:
        """Whether `wants` depends on the number of optimizer steps of the whole run."""
        return False

    def wants(self, progress: Progress) -> Wants:
        """What to freeze now."""
        return Wants()

    def next_step(self, progress: Progress) -> float:
        """The optimizer step at which `wants` may change within an epoch; infinity if there is none."""
        return float("inf")

    def next_start(self, progress: Progress) -> Moment | None:
        """When the policy unfreezes something next; None: never; `METRIC_DECIDES`: not known in advance."""
        return None

    def holds(self, view: FrozenView) -> set[Place]:
        """The modules to run in eval mode, given the current trainable parameters."""
        return set()

    def lean(self, view: FrozenView) -> set[Place]:
        """The normalisation layers that should save no input for the backward pass while they are held."""
        return set()

    # ---- metric triggers

    @property
    def watched_metric(self) -> str | None:
        """Name of the logged metric that the policy monitors; None: it monitors none."""
        return None

    def validated(
        self, metrics: Mapping[str, Any], epoch: int, take: Callable[[Collection[str]], dict[str, Any]]
    ) -> None:
        """Read the metrics of a validation that has just ended. Called when `watched_metric` is not None.

        Args:
            metrics: name -> value, equal on all ranks.
            epoch: zero-based.
            take: parameters that stay frozen -> a snapshot of all others, of the buffers and the optimizer state.

        Raises:
            PlanError: the metric is not among them.
        """

    def restored(self) -> None:
        """Called when the snapshot of `wants` has been restored; the policy must not ask for it again."""
        self.snapshot = None

    # ---- checkpoints

    @property
    def signature(self) -> Any:
        """Plain data that must be equal in a checkpoint for a run to be resumed; None: no condition."""
        return None

    @property
    def arguments(self) -> str:
        """The constructor's arguments as text, to distinguish policies with the same class and signature."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return ", ".join(f"{name}={getattr(self, name, None)!r}" for name in names)

    def state_of_run(self) -> dict[str, Any]:
        """The state that cannot be recomputed from the progress, as plain types."""
        return {}

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint; an empty state is the start of a run."""


class Stepping:
    """What happens in an optimizer step: dropped gradients, scaled rates, changed options."""

    def check_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Refuse optimizers that this policy cannot work with. Called before they are split.

        Raises:
            OptimizerError: the policy cannot work with one of them.
        """

    @property
    def idles(self) -> bool:
        """Whether to call `idle` before each update. DDP then accepts parameters without a gradient."""
        return False

    def idle(self, optimizer: Optimizer) -> Collection[str]:
        """Trainable parameters that must not move in the next update.

        Called after the backward pass, possibly several times per update.
        """
        return ()

    @property
    def shapes_steps(self) -> bool:
        """Whether to call `observe`, `step_factors` and `step_options` before each update, and `updated` after it."""
        return False

    def observe(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> None:
        """Read the gradients of the next update, after `steps` earlier ones of this optimizer.

        If the `step` of an optimizer calls `step` of its base class, this is called again with the same `steps`.
        """

    def step_factors(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> Sequence[float] | None:
        """Factors of the slots' rates in the next update, after `steps` earlier ones; None: all 1.

        Called right before the update, and whenever the rates are needed.
        """
        return None

    def step_options(
        self, optimizer: Optimizer, slots: Sequence[Slot], steps: int
    ) -> Sequence[Mapping[str, Any]] | None:
        """Options other than the rate for the next update: name -> value, one dict per slot; None: no changes."""
        return None

    def updated(self, optimizer: Optimizer, slots: Sequence[Slot], rates: Sequence[Any]) -> None:
        """Called right after an update that used these rates, one per slot, with the gradients still there."""


class Speaking:
    """What to report: the table at the start, remarks, warnings."""

    verbose: bool = True  # False: no table and no lines at changes during the whole run
    observes_only: bool = False  # True: the policy decides nothing, and titles leave it out

    def rows(self, progress: Progress) -> list[Row]:
        """Rows of the table at the start."""
        return []

    def remarks(self) -> list[str]:
        """Sentences under the table about things a user may not expect."""
        return []

    def reasons(self) -> list[str]:
        """The reason for the last change of `wants`, for the line at the change."""
        return []

    def changed(self, done: Change) -> None:
        """Read the changes made by `reconcile`. Not called without changes."""

    def foreseen(self, progress: Progress) -> list[str]:
        """Warnings at the start of a fit about things planned after its end, as far as `progress` knows."""
        return []

    def warnings(self, progress: Progress) -> list[str]:
        """Warnings at the end of a fit at `progress`, for example about stages that never trained."""
        return []


class Policy(Freezing, Stepping, Speaking):
    """A declaration of what trains, how fast, and in which mode. Subclasses override the methods they need."""


def shared_stages(policies: Sequence[Policy]) -> list[Stages]:
    """The stages that the policies of a run share."""
    return [stages for policy in policies if (stages := policy.shared_stages) is not None]
