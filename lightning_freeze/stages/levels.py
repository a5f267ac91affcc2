"""Group units into levels of equal distance to the loss, and place the units that the forward did not call."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from lightning_freeze.stages.flow import depths
from lightning_freeze.stages.units import Level, Unit
from lightning_freeze.stages.usage import Usage

Kin = Callable[[Unit, Unit], bool]


def levels_of(units: Sequence[Unit], usage: Usage, kin: Kin | None = None) -> tuple[list[Level], list[Level]]:
    """The levels, input first, and the units registered after the head that were not called.

    Without a forward, each unit is a level, in order of registration.

    Args:
        units: the units in order of registration.
        usage: the usage recorded in a forward.
        kin: whether a unit that was not called belongs beside another one (the experts of a layer, blocks left out at
            random). None: each such unit is a level of its own, after the unit registered before it.
    """
    unit_of = {name: place for place, unit in enumerate(units) for name in unit.names}
    depth = depths(usage.flow, unit_of, {place for place, unit in enumerate(units) if unit.weights})
    if not depth:
        return _registered(units), []
    groups: dict[int, list[Unit]] = {}
    for place in sorted(depth, key=lambda place: (units[place].first, place)):
        groups.setdefault(depth[place], []).append(units[place])
    alone: dict[int, list[int]] = {}  # place of a unit -> the units without a level that follow it
    for place in (place for place in range(len(units)) if place not in depth):
        beside = _nearest(place, units, depth, kin) if kin else None
        if beside is not None:
            groups[depth[beside]].append(units[place])
        else:
            alone.setdefault(_predecessor(place, units, depth), []).append(place)
    return _in_order(units, groups, depth, alone)


def _nearest(place: int, units: Sequence[Unit], depth: Collection[int], kin: Kin) -> int | None:
    """The unit that an uncalled unit belongs beside."""
    found = [other for other in depth if kin(units[place], units[other])]
    return min(found, key=lambda other: (abs(other - place), other), default=None)


def _predecessor(place: int, units: Sequence[Unit], depth: Collection[int]) -> int:
    """The unit before a unit without a depth, in order of use, else of registration; -1: none."""
    first = units[place].first
    if first < math.inf:
        return max((other for other in depth if units[other].first < first), key=lambda k: units[k].first, default=-1)
    return max((other for other in depth if other < place), default=-1)


def _in_order(
    units: Sequence[Unit], groups: Mapping[int, list[Unit]], depth: Mapping[int, int], alone: Mapping[int, list[int]]
) -> tuple[list[Level], list[Level]]:
    after: dict[float, list[Level]] = {}
    for before in sorted(alone):
        after.setdefault(depth.get(before, math.inf), []).extend(Level.of([units[k]]) for k in alone[before])
    levels, above = after.pop(math.inf, []), after.pop(0, [])
    for distance in sorted(groups, reverse=True):
        levels += [Level.of(groups[distance]), *after.get(distance, [])]
    return levels, above


def _registered(units: Sequence[Unit]) -> list[Level]:
    """One level per unit; heads that work side by side at the end share a level."""
    start = len(units) - 1
    while start and all(units[start - 1].apart(head) for head in units[start:]):
        start -= 1
    return [*(Level.of([unit]) for unit in units[:start]), Level.of(units[start:])]
