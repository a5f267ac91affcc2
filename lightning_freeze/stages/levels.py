"""Group units into levels of equal distance to the loss, and place the units that the forward did not call."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property

from lightning_freeze.stages.flow import depths
from lightning_freeze.stages.units import Level, Unit
from lightning_freeze.stages.usage import Usage

Families = Callable[[Unit], Iterable[Hashable]]


def levels_of(units: Sequence[Unit], usage: Usage, families: Families | None = None) -> tuple[list[Level], list[Level]]:
    """The levels, input first, and the units registered after the head that were not called.

    Without a forward, each unit is a level, in order of registration.

    Args:
        units: the units in order of registration.
        usage: the usage recorded in a forward.
        families: what a unit has in common with others. One that was not called belongs beside the nearest unit of a
            family of its own (the experts of a layer, blocks that are left out at random). None: each is a level of its
            own, after its predecessor of registration.
    """
    unit_of = {name: place for place, unit in enumerate(units) for name in unit.names}
    depth = depths(usage.flow, unit_of, {place for place, unit in enumerate(units) if unit.weights})
    if not depth:
        return _registered(units), []
    groups: dict[int, list[Unit]] = {}
    for place in sorted(depth, key=lambda place: (units[place].first, place)):
        groups.setdefault(depth[place], []).append(units[place])
    alone: dict[int, list[int]] = {}  # the place of a unit -> those without a level of their own that follow it
    neighbours = _Neighbours(units, sorted(depth), families)
    for place in (place for place in range(len(units)) if place not in depth):
        beside = neighbours.nearest(place)
        if beside is not None:
            groups[depth[beside]].append(units[place])
        else:
            alone.setdefault(neighbours.predecessor(place), []).append(place)
    return _in_order(units, groups, depth, alone)


class _Neighbours:
    """Where to put units that have no depth.

    Args:
        units: all units.
        placed: the places of those with a depth, ascending.
        families: as in `levels_of`.
    """

    def __init__(self, units: Sequence[Unit], placed: list[int], families: Families | None) -> None:
        self._units, self._placed, self._families = units, placed, families
        self._used = sorted((units[place].first, place) for place in placed)

    @cached_property
    def _members(self) -> dict[Hashable, list[int]]:
        members: dict[Hashable, list[int]] = {}
        for place in self._placed:
            for family in self._of(place):
                members.setdefault(family, []).append(place)
        return members

    def _of(self, place: int) -> Iterable[Hashable]:
        return self._families(self._units[place]) if self._families else ()

    def nearest(self, place: int) -> int | None:
        """The nearest unit by registration of a family of this one."""
        found: list[int] = []
        for family in self._of(place):
            members = self._members.get(family, [])
            after = bisect_left(members, place)
            found += members[max(after - 1, 0) : after + 1]
        return min(found, key=lambda other: (abs(other - place), other), default=None)

    def predecessor(self, place: int) -> int:
        """The unit after which this one comes: by the order of use, else by that of registration; -1: none."""
        first = self._units[place].first
        if first < math.inf:
            before = bisect_left(self._used, (first, -1))
            return self._used[before - 1][1] if before else -1
        before = bisect_left(self._placed, place)
        return self._placed[before - 1] if before else -1


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
