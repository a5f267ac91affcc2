"""Depth below the loss, in units: the longest path counts, cycles share a depth, and the work stays near-linear."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_freeze.stages.flow import Flow, depths, first_uses


def chain(*names: str) -> Flow:
    flow = Flow()
    for place, name in enumerate(names):
        flow.add([place - 1] if place else [], [name] if name else [])
    return flow


def named(flow: Flow, names: str, norms: str = "") -> dict[str, int]:
    unit_of = {name: place for place, name in enumerate(names)}
    found = depths(flow, unit_of, [unit_of[name] for name in names if name not in norms])
    return {names[unit]: depth for unit, depth in found.items()}


class TestDepths:
    def test_the_last_unit_is_next_to_the_loss(self) -> None:
        assert named(chain("a", "b", "", "c"), "abc") == {"c": 0, "b": 1, "a": 2}

    def test_a_residual_connection_does_not_shorten_the_way(self) -> None:
        flow = Flow()
        stem = flow.add([], ["a"])
        block = flow.add([stem], ["b"])
        added = flow.add([stem, block])
        flow.add([added], ["c"])

        assert named(flow, "abc") == {"c": 0, "b": 1, "a": 2}

    def test_a_norm_has_a_depth_and_does_not_add_one_to_what_is_below_it(self) -> None:
        assert named(chain("a", "n", "b"), "anb", norms="n") == {"b": 0, "n": 1, "a": 1}

    def test_units_that_use_each_other_in_turn_share_a_depth(self) -> None:
        flow = Flow()
        for place, name in enumerate(["x", "a", "b", "c", "h"]):
            flow.add([place - 1] if place else [], [name])

        found = depths(flow, {"x": 0, "a": 1, "b": 2, "c": 1, "h": 3}, range(4))

        assert found == {3: 0, 1: 1, 2: 1, 0: 2}

    def test_what_no_loss_reaches_has_no_depth(self) -> None:
        assert named(Flow(), "abc") == {}


class TestFirstUses:
    def test_a_tied_head_counts_at_the_embedding(self) -> None:
        assert first_uses(chain("w", "b", "w")) == {0: ("w",), 1: ("b",), 2: ()}

    def test_two_uses_side_by_side_both_count(self) -> None:
        flow = Flow()
        left, right = flow.add([], ["w"]), flow.add([], ["w"])
        flow.add([left, right], ["h"])

        assert first_uses(flow) == {0: ("w",), 1: ("w",), 2: ("h",)}


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    flow = Flow()
    for node in range(draw(st.integers(1, 12))):
        below = draw(st.lists(st.integers(0, node - 1), unique=True, max_size=3)) if node else []
        flow.add(below, draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=2)))
    return flow


@settings(max_examples=200, deadline=None)
@given(flows())
def test_a_unit_lies_below_every_unit_above_it_unless_they_form_a_cycle(flow: Flow) -> None:
    uses = first_uses(flow)
    above: dict[str, set[str]] = {name: set() for names in uses.values() for name in names}

    def climb(name: str, node: int) -> None:
        for upper, below in enumerate(flow.below):
            if node in below:
                here = set(uses.get(upper, ())) - {name}
                above[name] |= here
                climb(name, upper)

    for node, names in uses.items():
        for name in names:
            climb(name, node)

    def reaches(one: str, other: str) -> bool:
        seen, waiting = {one}, [one]
        while waiting:
            fresh = above[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        return other in seen

    found = named(flow, "abcdef")

    assert found.keys() == above.keys()
    for one, others in above.items():
        for other in others:
            assert found[one] == found[other] if reaches(other, one) else found[one] > found[other]


def test_a_thousand_residual_blocks_are_ordered_at_once() -> None:
    flow, names = Flow(), []
    flow.add([], ["stem"])
    for k in range(5000):
        skip = len(flow.below) - 1
        names.append(f"block{k}")
        flow.add([skip, flow.add([skip], [names[-1]])])

    started = time.process_time()
    found = depths(flow, {name: place for place, name in enumerate(["stem", *names])}, range(5001))

    assert found[0] == 5000
    assert time.process_time() - started < 1
