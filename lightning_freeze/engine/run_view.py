"""A read-only view of a run at one moment, for reports, audits and averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch.optim import Optimizer

from lightning_freeze.engine.declarations import Binding, Row, Wants
from lightning_freeze.engine.policy import Policy
from lightning_freeze.model.index import ModelIndex, Place
from lightning_freeze.optim.slotted import SlottedOptimizer
from lightning_freeze.schedule.moments import Progress


@dataclass(frozen=True)
class SlotView:
    """One slot of an optimizer.

    Attributes:
        optimizer: index of the optimizer in `RunView.optimizers`.
        label: the stage, or "" for parameters without a stage.
        factor: factor of the rate.
        names: its parameters, trainable or not.
        lr: the learning rate in the optimizer's group, without the factors of a step.
        base_lr: the rate without its scheduler: the scheduler's start value, or its maximum.
        trains: whether any of its parameters trains.
        origin: index of the user's group that it was split from.
    """

    optimizer: int
    label: str
    factor: float
    names: Sequence[str]
    lr: float
    base_lr: float
    trains: bool
    origin: int


@dataclass(frozen=True)
class RunView:
    """A run at one moment.

    Attributes:
        index: the names of the model.
        policies: all policies; only their questions may be called.
        bindings: one for each policy.
        before: parameter -> whether it required a gradient before the fit.
        labels: parameter -> its stage, "" for none.
        progress: the progress at the last `reconcile`.
        trainable: the parameters that train.
        wants: what each policy wanted at `progress`; empty before the first `reconcile`.
        held: the modules held in eval mode.
        modes_before: module -> whether it was in train mode before it was first held.
        sharded: whether parameters are sharded, so that bits differ between ranks.
        branching: frozen modules that are not held, because their own forward branches on `self.training`.
        can_train: parameters that required a gradient before the fit, or that a policy thaws.
        remarks: sentences about discovered stages that a user may not expect.
    """

    index: ModelIndex
    policies: tuple[Policy, ...]
    bindings: tuple[Binding, ...]
    before: Mapping[str, bool]
    labels: Mapping[str, str]
    progress: Progress
    trainable: frozenset[str]
    wants: tuple[Wants, ...]
    held: frozenset[Place]
    modes_before: Mapping[Place, bool]
    sharded: bool
    branching: frozenset[Place] = frozenset()
    can_train: frozenset[str] = frozenset()
    _slotted: tuple[SlottedOptimizer, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def optimizers(self) -> list[Optimizer]:
        """The torch optimizers."""
        return [slotted.optimizer for slotted in self._slotted]

    @cached_property
    def slots(self) -> list[SlotView]:
        """The slots of all optimizers, in order."""
        return [
            SlotView(
                place,
                slot.label,
                slot.factor,
                slot.names,
                float(group["lr"]),
                float(group.get("max_lr", group.get("initial_lr", group["lr"]))),
                bool(group["params"]),
                slot.origin,
            )
            for place, slotted in enumerate(self._slotted)
            for slot, group in zip(slotted.slots, slotted.optimizer.param_groups, strict=True)
        ]

    @property
    def occupied(self) -> list[tuple[str, bool]]:
        """Label of each slot of all optimizers, and whether any of its parameters trains."""
        return [
            (slot.label, bool(group["params"]))
            for slotted in self._slotted
            for slot, group in zip(slotted.slots, slotted.optimizer.param_groups, strict=True)
        ]

    @property
    def rows(self) -> list[Row]:
        """The rows of all policies for the table at the start."""
        return [row for policy in self.policies for row in policy.rows(self.progress)]

    @property
    def deciding(self) -> list[str]:
        """Titles of the policies that decide something, without duplicates."""
        return list(dict.fromkeys(policy.title for policy in self.policies if not policy.observes_only))

    def training_before(self, place: Place) -> bool:
        """Whether a module was in train mode before it was first held."""
        return self.modes_before.get(place, self.index.spans[place].module.training)
