"""Slots: optimizer groups that exist for a whole fit, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Literal

from lightning_freeze.optim.group_options import options_text


@dataclass
class Slot:
    """One group of the optimizer for the whole fit.

    Attributes:
        name: unique within the optimizer; the name of the stage if that is unique.
        label: the name of the stage, or "" for parameters without a stage.
        factor: the factor that the rates of the user's group were multiplied by.
        origin: index of the user's group that the slot was split from.
        names: its parameters, trainable or not, in the order of the user's group.
        since: the optimizer's step count when the slot was last filled after being empty.
        stage: number of unfreezings so far in the whole run.
        stage_since: the optimizer's step count at the last unfreezing.
        counters: the group's step counters when the slot was emptied; None if it has never been.
    """

    name: str
    label: str
    factor: float
    origin: int
    names: list[str]
    since: int = 0
    stage: int = 0
    stage_since: int = 0
    counters: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def name_slots(slots: Sequence[Slot], given: Sequence[Any]) -> None:
    """Unique names: the name of the stage, followed by the user's group, options and factor where needed."""
    several = len({slot.origin for slot in slots}) > 1
    for slot in slots:
        own = given[slot.origin] or (f"pg{slot.origin + 1}" if several else None)
        own = own and str(own).removeprefix(f"{slot.label}/")  # a name from an earlier fit
        shared = sum(other.label == slot.label for other in slots) > 1
        parts = [slot.label or (None if own else "rest"), own if shared or not slot.label else None]
        slot.name = "/".join(str(part) for part in parts if part)
    for name in {slot.name for slot in slots}:
        same = [slot for slot in slots if slot.name == name]
        for slot in same if len({repr(slot.options) for slot in same}) > 1 else ():
            slot.name = "/".join(filter(None, [name, options_text(slot.options)]))
    for name in {slot.name for slot in slots}:
        same = [slot for slot in slots if slot.name == name]
        if len(same) > 1:
            for slot in same:
                slot.name = f"{name}/x{slot.factor:g}"
    for place, slot in enumerate(slots):
        if any(slot.name == other.name for other in slots[:place]):
            slot.name = f"{slot.name}/{place}"


class Occupancy:
    """Which parameters are in their slots.

    Args:
        slots: all slots of an optimizer; at first everything is in its slot.
        members: for each slot the lists of its group, with one entry per name of the slot.
    """

    def __init__(self, slots: Sequence[Slot], members: Sequence[Mapping[str, list[Any]]]) -> None:
        self._members = members
        self._flags = [bytearray(b"\1") * len(slot.names) for slot in slots]
        self._place_of = {
            name: (place, position) for place, slot in enumerate(slots) for position, name in enumerate(slot.names)
        }

    def __contains__(self, name: str) -> bool:
        place, position = self._place_of.get(name, (None, 0))
        return place is not None and bool(self._flags[place][position])

    def known(self, names: Iterable[str]) -> list[str]:
        """Those of these names that belong to a slot."""
        return [name for name in names if name in self._place_of]

    def set(self, names: Iterable[str], present: bool) -> set[int]:
        """Put parameters into their slots or out of them; returns the places of these slots."""
        places = set()
        for place, position in map(self._place_of.__getitem__, names):
            self._flags[place][position] = present
            places.add(place)
        return places

    def lists(self, place: int) -> dict[str, list[Any]]:
        """The lists of a slot's group: whoever is in the slot now."""
        return {key: list(compress(whole, self._flags[place])) for key, whole in self._members[place].items()}


Placement = Literal["keep", "drop", "cpu"]


PLACEMENTS: tuple[Placement, ...] = ("keep", "cpu", "drop")  # where policies differ, the first of these wins
