"""Stages by distance to the loss, from one real training step."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_freeze.errors import PlanError
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.stages.blocks import units_of
from lightning_freeze.stages.discover import stages_from
from lightning_freeze.stages.gradients import flow_to
from lightning_freeze.stages.levels import Families, levels_of
from lightning_freeze.stages.stage import Stage
from lightning_freeze.stages.units import Level, Unit, join
from lightning_freeze.stages.usage import Usage, UsageMode, fill_from_calls


@dataclass
class Look:
    """The result of a training step.

    Attributes:
        levels: the parameters that can train, by distance to the loss, input first.
        detached: parameters that can train and were used, but no loss depends on them, as in an EMA target.
        uncalled: parameters that can train and were not used in this step.
        order: the order of the levels: "distance to the loss", "use" or "registration".
    """

    levels: list[Level]
    detached: list[str] = field(default_factory=list)
    uncalled: list[str] = field(default_factory=list)
    order: str = "distance to the loss"

    def plain(self) -> Look:
        """A copy without intermediate results, for sending to other ranks."""
        levels = [
            replace(level, units=tuple(replace(unit, bits=0, inputs=0) for unit in level.units))
            for level in self.levels
        ]
        return replace(self, levels=levels)

    def stages(self, index: ModelIndex, most: int | None = None) -> list[Stage]:
        """At most this many stages, head first."""
        return stages_from(index, self.levels, most)


def read_look(
    mode: UsageMode, losses: Sequence[Tensor], trains: Collection[str], groups: Sequence[Collection[str]] = ()
) -> Look:
    """The levels of the parameters that can train.

    Args:
        mode: the mode that was active during the training step, with gradients.
        losses: the tensors that backward started from.
        trains: names of the parameters that can train.
        groups: the parameters of each optimizer. If no loss depends on any of a group, it trains in other steps.

    Raises:
        PlanError: the losses depend on none of these parameters.
    """
    index, usage, trains = mode.index, mode.usage, set(trains)
    fill_from_calls(index, usage)
    flow = flow_to(losses, mode.name_of, mode.met_data)
    reached = {name for names in flow.uses.values() for name in names}
    if reached.isdisjoint(trains):
        raise PlanError("its loss depends on no parameter that can train" if losses else "it computed no loss")
    later = {name for group in groups if reached.isdisjoint(group) for name in group}
    apart = _detached(index, usage, reached) - later
    detached = [name for name in index.parameters if name in trains and name in apart]
    uncalled = [name for name in index.parameters if name in trains and name not in reached and name not in apart]
    levels = _levels(index, replace(usage, flow=flow), trains - apart, _families(index))
    return Look(levels, detached, uncalled)


def without_loss(mode: UsageMode | None, index: ModelIndex, trains: Collection[str]) -> Look:
    """The levels of trainable parameters in order of use if the forward used all of them, else of registration."""
    usage = Usage()
    if mode is not None:
        fill_from_calls(index, mode.usage)
        usage = mode.usage if mode.usage.first.keys() >= set(trains) else usage
    return in_order(index, usage, trains)


def in_order(index: ModelIndex, usage: Usage, trains: Collection[str]) -> Look:
    """The levels of trainable parameters in order of use, without a loss."""
    return Look(_levels(index, usage, trains), order="use" if usage.first else "registration")


def _levels(index: ModelIndex, usage: Usage, trains: Collection[str], families: Families | None = None) -> list[Level]:
    trains = set(trains)
    units = [part for unit in units_of(index, usage) if (part := _part(unit, index, trains)) is not None]
    return join(*levels_of(units, usage, families)) if units else []


def _part(unit: Unit, index: ModelIndex, trains: Collection[str]) -> Unit | None:
    """The part of a unit that can train."""
    names = tuple(name for name in unit.names if name in trains)
    size = sum(index.parameters[name].numel() for name in names)
    return replace(unit, names=names, size=size) if names else None


def _detached(index: ModelIndex, usage: Usage, reached: Collection[str]) -> set[str]:
    """Parameters that were used, in modules that no loss depends on."""
    found = set[str]()
    for slots, _ in index.inside.values():
        own = [index.aliases[slot] for slot in slots]
        if not any(name in reached for name in own):
            found.update(name for name in own if name in usage.first)
    return found.difference(reached)


def _families(index: ModelIndex) -> Families:
    """A unit's families: units that have the same place under two siblings of one class, as experts, blocks, heads."""
    kinds = {name: type(span.module) for name, span in index.modules.items()}

    def families(unit: Unit) -> Iterator[Hashable]:
        parts = unit.labels[0].split(".")
        kind = kinds.get(unit.labels[0])
        for place in range(len(parts)) if kind is not None else ():
            sibling = kinds[".".join(parts[: place + 1])]
            yield place, kind, sibling, ".".join((*parts[:place], "*", *parts[place + 1 :]))

    return families
