"""Plain data that `Policy` and `Reconciler` exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_freeze.optim.slots import Placement
from lightning_freeze.schedule.moments import Moment
from lightning_freeze.stages.stage import BoundStage


@dataclass(frozen=True)
class Binding:
    """The part of a policy that is constant during a fit.

    Attributes:
        labels: parameter -> its stage; parameters with one label share an optimizer slot.
        factors: parameter -> factor of its learning rate; factors of several policies multiply.
        trains: parameters that the policy will unfreeze at some time; they must be in an optimizer.
        thaws: those of `trains` that it unfreezes even if they required no gradient before the fit.
        own_factors: parameter -> factor that replaces the factors of all policies.
        stages: the stages that it unfreezes. A stage named by the user must contain parameters that can train.
        freezes: the sets that `Policy.wants` may freeze during a run; empty for a policy that freezes nothing.
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
            stages: disjoint stages.
            thaw: whether the policy also trains parameters that required no gradient before the fit.
            freezes: the sets that the policy may freeze.
        """
        labels = {name: stage.name for stage in stages for name in stage.names}
        trains = frozenset(labels)
        return cls(labels, {}, trains, trains if thaw else frozenset(), own_factors(stages), tuple(stages), freezes)


def own_factors(stages: Sequence[BoundStage]) -> dict[str, float]:
    """Parameter -> the factor given in its stage."""
    return {name: stage.factor for stage in stages if stage.factor is not None for name in stage.names}


@dataclass(frozen=True)
class Wants:
    """What a policy wants now.

    Attributes:
        frozen: parameters that must not train.
        optimizer_state: what to do with the optimizer state of newly frozen parameters.
        restore: a snapshot to restore before anything else changes; `Policy.restored` is called afterwards.
    """

    frozen: frozenset[str] = frozenset()
    optimizer_state: Placement = "keep"
    restore: Mapping[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Change:
    """The changes made by one call of `reconcile`; false if there are none.

    Attributes:
        unfrozen: parameters that began to train.
        frozen: parameters that stopped training.
        slots: names of the optimizer slots that were filled or emptied.
        reducer: whether the DDP wrapper was rebuilt.
        held: modules put in eval mode.
        released: modules whose mode was restored.
        restored: names of parameters and buffers that were restored from a snapshot.
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
    """One row of the table at the start: what a policy will do, to which parameters, and when.

    Attributes:
        start: the moment at which it begins, if known; the table marks rows after the end of the run.
    """

    name: str
    patterns: Sequence[str]
    when: str
    names: Sequence[str]
    start: Moment | None = None
