"""Slots have unique names: the stage's, with the user's group and the factor only where they are needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lightning_freeze.optim.slots import PLACEMENTS, Occupancy, Slot, name_slots


def named(*slots: tuple[str, float, int], given_names: list[str | None]) -> list[str]:
    made = [Slot("", label, factor, origin, []) for label, factor, origin in slots]
    name_slots(made, given_names)
    return [slot.name for slot in made]


def test_one_group_of_the_user_needs_no_name() -> None:
    assert named(("head", 1, 0), ("stem", 0.5, 0), ("", 1, 0), given_names=[None]) == ["head", "stem", "rest"]


def test_groups_of_the_user_are_added_where_a_stage_is_in_several() -> None:
    slots = [("head", 1, 0), ("head", 1, 1), ("stem", 1, 0)]
    assert named(*slots, given_names=["decay", None]) == ["head/decay", "head/pg2", "stem"]


def test_a_factor_is_added_where_nothing_else_tells_slots_apart() -> None:
    assert named(("head", 1, 0), ("head", 0.1, 0), given_names=[None]) == ["head/x1", "head/x0.1"]


def test_a_name_from_an_earlier_fit_is_not_repeated() -> None:
    assert named(("head", 1, 0), ("head", 1, 1), given_names=["head/decay", "x"]) == ["head/decay", "head/x"]


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.sampled_from([1, 0.5]), st.integers(0, 2)), min_size=1))
def test_names_are_unique(slots: list[tuple[str, float, int]]) -> None:
    found = named(*slots, given_names=[None, "a", "x"])
    assert len(set(found)) == len(found)
    assert all(found)


def test_what_is_kept_wins_over_what_is_dropped() -> None:
    assert PLACEMENTS == ("keep", "cpu", "drop")


def test_parameters_leave_their_slots_and_return_in_the_order_of_the_slot() -> None:
    slots = [Slot("a", "", 1.0, 0, ["a", "b", "c"]), Slot("d", "", 1.0, 0, ["d"])]
    present = Occupancy(slots, [{"params": [1, 2, 3], "param_names": ["a", "b", "c"]}, {"params": [4]}])
    assert present.set(present.known(["c", "a", "unknown"]), False) == {0}
    assert present.lists(0) == {"params": [2], "param_names": ["b"]}
    assert ["a" in present, "b" in present, "unknown" in present] == [False, True, False]
    assert present.set(["c", "a"], True) == {0}
    assert present.lists(0)["params"] == [1, 2, 3]
    assert present.lists(1) == {"params": [4]}
