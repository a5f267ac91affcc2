"""One label where several policies divide a model."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from lightning_freeze.engine.labels import joined_labels


def test_a_stage_within_another_keeps_its_name() -> None:
    words = {"1": ["head", "fc"], "2": ["body", "l4"], "3": ["body", "l3"]}
    assert joined_labels(words) == {"1": "head", "2": "l4", "3": "l3"}


def test_stages_that_cross_are_joined() -> None:
    words = {"1": ["a", "x"], "2": ["a", "y"], "3": ["b", "x"], "4": ["b", "y"], "5": ["", ""]}
    assert joined_labels(words) == {"1": "a-and-x", "2": "a-and-y", "3": "b-and-x", "4": "b-and-y", "5": ""}


@given(st.lists(st.tuples(*[st.sampled_from(["", "a", "b", "c"])] * 2), max_size=9))
def test_parameters_share_a_label_exactly_when_every_policy_calls_them_the_same(labels: list[tuple[str, str]]) -> None:
    words = {str(place): pair for place, pair in enumerate(labels)}
    joined = joined_labels(words)
    for one, other in combinations(words, 2):
        same_words = sorted(set(filter(None, words[one]))) == sorted(set(filter(None, words[other])))
        assert words[one] != words[other] or joined[one] == joined[other]
        assert joined[one] != joined[other] or words[one] == words[other] or same_words
