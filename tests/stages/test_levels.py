"""Units in levels: equal depth is one level, and what was not called finds a place."""

from __future__ import annotations

import math

from lightning_freeze.stages.flow import Flow
from lightning_freeze.stages.levels import levels_of
from lightning_freeze.stages.units import Unit
from lightning_freeze.stages.usage import Usage


def unit(name: str, first: float = math.inf) -> Unit:
    return Unit((name,), (name,), 1, first, first, 0, 0, 1, None)


def used(*names: str) -> Usage:
    flow = Flow()
    for place, name in enumerate(names):
        flow.add([place - 1] if place else [], [name])
    return Usage(flow=flow)


def test_units_are_ordered_from_the_input_to_the_loss() -> None:
    levels, above = levels_of([unit("c", 2), unit("a", 0), unit("b", 1)], used("a", "b", "c"))

    assert [level.names for level in levels] == [("a",), ("b",), ("c",)]
    assert not above


def test_what_was_not_called_follows_its_predecessor_of_registration() -> None:
    levels, above = levels_of([unit("x"), unit("a", 0), unit("y"), unit("b", 1), unit("z")], used("a", "b"))

    assert [level.names for level in levels] == [("x",), ("a",), ("y",), ("b",)]
    assert [level.names for level in above] == [("z",)]


def test_what_was_not_called_joins_its_nearest_kin() -> None:
    levels, above = levels_of([unit("a", 0), unit("b", 1), unit("z")], used("a", "b"), lambda unit: [unit.weights])

    assert [level.names for level in levels] == [("a",), ("b", "z")]
    assert not above


def test_without_a_forward_each_unit_is_a_level_in_order_of_registration() -> None:
    levels, _ = levels_of([unit("b"), unit("a")], Usage())

    assert [level.names for level in levels] == [("b",), ("a",)]
