"""What policies say and hear: plain data between a `Policy` and the `Reconciler`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_freeze.optim.slots import Placement
from lightning_freeze.schedule.moments import Moment
from lightning_freeze.stages.stage import BoundStage


@dataclass(frozen=True)
class Binding:
    """The part of a policy that stays the same for a whole fit.

    Attributes:
        labels: parameter -> the stage it belongs to; parameters of one label share a slot of the optimizer.
        factors: parameter -> factor of its learning rate; factors of several policies multiply.
        trains: parameters that the policy will unfreeze at some time, so they have to be in an optimizer.
        thaws: those of `trains` that it unfreezes even where they required no gradient before the fit.
        own_factors: parameter -> factor that takes the place of all policies' factors.
        stages: what it unfreezes, stage by stage. One that a user named must hold something that can train.
        freezes: the sets that `Policy.wants` may freeze in the course of a run; none for a policy that freezes nothing.
        options: parameter -> option -> value in its optimizer group.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    trains: frozenset[str] = frozenset()
    thaws: frozenset[str] = frozenset()
    own_factors: Mapping[str, float] = field(default_factory=dict)
    stages: Sequence[BoundStage] = ()
    freezes: tuple[frozenset[str], ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of_stages(
        cls, stages: Sequence[BoundStage], *, thaw: bool = False, freezes: tuple[frozenset[str], ...] = ()
    ) -> Binding:
        """The binding of a policy that trains these stages.

        Args:
            stages: disjoint.
            thaw: whether it trains what required no gradient before the fit as well.
            freezes: the sets that it may freeze.
        """
        labels = {name: stage.name for stage in stages for name in stage.names}
        trains = frozenset(labels)
        return cls(labels, {}, trains, trains if thaw else frozenset(), own_factors(stages), tuple(stages), freezes)


def own_factors(stages: Sequence[BoundStage]) -> dict[str, float]:
    """Parameter -> the factor that its stage has of its own."""
    return {name: stage.factor for stage in stages if stage.factor is not None for name in stage.names}


@dataclass(frozen=True)
class Wants:
    """What a policy wants now.

    Attributes:
        frozen: parameters that must not train.
        optimizer_state: where the optimizer state of newly frozen parameters goes.
        restore: a snapshot to restore before anything else changes; `Policy.restored` is called afterwards.
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
    """One line of the table at the start: what a policy will do, to what, and when.

    Attributes:
        start: the moment at which it begins, where that is known; a table marks what lies after the end of the run.
    """

    name: str
    patterns: Sequence[str]
    when: str
    names: Sequence[str]
    start: Moment | None = None
