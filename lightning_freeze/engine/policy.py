"""What a policy may say. A policy declares and the `Reconciler` acts: no policy changes a model or an optimizer.

A policy is bound to a model once per fit: its names become concrete, and wrong ones raise. After that the
`Reconciler` asks it what it wants at any moment of the run. The answers depend only on the binding, on the progress
of the run and on the policy's own state. So a second question changes nothing, and a resumed run gets the same
answers.

A policy has three parts, each with a default for everything: what to freeze (`Freezing`), what happens in an
optimizer step (`Stepping`), and what to say (`Speaking`).
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
    """What to freeze, and when: names, eval mode, and the state that a checkpoint keeps."""

    thaw: bool = False  # True for a policy that also unfreezes what required no gradient before the fit
    snapshot: Snapshot | None = None  # weights that the policy keeps to restore later; saved with each checkpoint

    @property
    def title(self) -> str:
        """The name of this policy in tables and errors."""
        return type(self).__name__

    def check_trainer(self, trainer: Any) -> None:
        """Refuse a Trainer with which this policy cannot work, before the model is looked at.

        Args:
            trainer: the Lightning Trainer.

        Raises:
            PlanError: the policy cannot work with it.
        """

    def begin(self, trainer: Any) -> None:
        """Training begins: names are bound, and everything is as the policies want it.

        Args:
            trainer: the Lightning Trainer.
        """

    def bind(self, context: Context) -> Binding:
        """Resolve names against the model.

        Raises:
            FreezeError: a pattern matches nothing, or the arguments do not fit the model.
        """
        return Binding()

    @property
    def shared_stages(self) -> Stages | None:
        """The stages that other policies of the run may count by; None when it offers none."""
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
        """When the policy unfreezes something next; None: never, `METRIC_DECIDES`: not known beforehand."""
        return None

    def holds(self, view: FrozenView) -> set[Place]:
        """The modules to run in eval mode, given what trains now."""
        return set()

    def lean(self, view: FrozenView) -> set[Place]:
        """The normalisation layers that save no input for the backward pass while they are held."""
        return set()

    # ---- metric triggers

    @property
    def watched_metric(self) -> str | None:
        """Name of the logged metric that the policy watches; None when it watches none."""
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
        """The snapshot of `wants` is restored; do not ask for it again."""
        self.snapshot = None

    # ---- checkpoints

    @property
    def signature(self) -> Any:
        """What a checkpoint must agree on to be resumed, as plain data; None when nothing has to."""
        return None

    @property
    def arguments(self) -> str:
        """The constructor's arguments as text: they tell two policies of one class and signature apart."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return ", ".join(f"{name}={getattr(self, name, None)!r}" for name in names)

    def state_of_run(self) -> dict[str, Any]:
        """What cannot be recomputed from the progress, as plain types."""
        return {}

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint; an empty one is the start of a run."""


class Stepping:
    """What happens in an optimizer step: gradients that are dropped, rates that are scaled."""

    def check_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Refuse optimizers with which this policy cannot work, before they are split.

        Raises:
            OptimizerError: the policy cannot work with one of them.
        """

    @property
    def idles(self) -> bool:
        """Whether to ask `idle` before each update. DDP then accepts parameters without a gradient."""
        return False

    def idle(self, optimizer: Optimizer) -> Collection[str]:
        """Trainable parameters that must not move in the next update.

        Called when the gradients are there, possibly several times for one update.
        """
        return ()

    @property
    def shapes_steps(self) -> bool:
        """Whether to call `observe`, `step_factors` and `step_options` before each update, and `updated` after it."""
        return False

    def observe(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> None:
        """Read the gradients of the next update, after `steps` earlier ones of this optimizer.

        An optimizer whose `step` calls that of its base class calls again, with the same `steps`.
        """

    def step_factors(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> Sequence[float] | None:
        """Factors of the slots' rates in the next update, after `steps` earlier ones; None: all 1.

        Called right before the update, and whenever something asks for the rates.
        """
        return None

    def step_options(
        self, optimizer: Optimizer, slots: Sequence[Slot], steps: int
    ) -> Sequence[Mapping[str, Any]] | None:
        """Options of the slots other than the rate in the next update: name -> value, for each slot; None: none."""
        return None

    def updated(self, optimizer: Optimizer, slots: Sequence[Slot], rates: Sequence[Any]) -> None:
        """Called right after an update that used these rates, one per slot, with the gradients still there."""


class Speaking:
    """What to say: the table at the start, remarks, warnings."""

    verbose: bool = True  # False: no table and no line at a change, for the whole run
    observes_only: bool = False  # True for a policy that decides nothing: titles of a run leave it out

    def rows(self, progress: Progress) -> list[Row]:
        """Lines of the table at the start."""
        return []

    def remarks(self) -> list[str]:
        """Sentences under the table: what a user may not expect."""
        return []

    def reasons(self) -> list[str]:
        """Why the last answer of `wants` differs from the one before, for the line at the change."""
        return []

    def changed(self, done: Change) -> None:
        """Read what a call of `reconcile` changed. Not called when it changed nothing."""

    def foreseen(self, progress: Progress) -> list[str]:
        """Sentences for the start of a fit: what lies after its planned end, as `progress` knows it."""
        return []

    def warnings(self, progress: Progress) -> list[str]:
        """Sentences for the end of a fit at `progress`, for example stages that never trained."""
        return []


class Policy(Freezing, Stepping, Speaking):
    """A declaration of what trains, how fast, and in which mode. Subclasses override what they need."""


def shared_stages(policies: Sequence[Policy]) -> list[Stages]:
    """The stages that the policies of one run offer each other."""
    return [stages for policy in policies if (stages := policy.shared_stages) is not None]
