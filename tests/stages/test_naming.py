"""A stage without a name gets one that tables, pictures and loggers all take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_freeze.stages.naming import distinct, metric_name, ranges, stage_name


@pytest.mark.parametrize(
    ("patterns", "name"),
    [
        (["model.layer4"], "model.layer4"),
        (["*"], "rest"),
        (["*", "!model.fc", "!model.layer4"], "rest"),
        (["model.0", "!model.0.bias"], "model.0"),
        ([r"re:backbone\.7\.1\..*"], "backbone.7.1"),
        (["model.features.1[78]"], "model.features.17-18"),
        (["model.features.1[0-2]"], "model.features.10-12"),
        (["model.layer?.*.bn*"], "model.layer.bn"),
        (["kind:norm"], "kind-norm"),
        (["a.3", "a.2", "a.1"], "a.1-3"),
        (["stem", "conv1", "bn1"], "stem-and-2-more"),
    ],
)
def test_a_name_says_what_the_patterns_do(patterns: list[str], name: str) -> None:
    assert stage_name(patterns) == name


@given(st.lists(st.text("ab.*?[]!:re1\\& ", max_size=12), max_size=4))
def test_every_name_is_one_that_loggers_take(patterns: list[str]) -> None:
    name = stage_name(patterns)
    assert name
    assert metric_name(name) == name


def test_ranges_fold_neighbours_that_count_up_or_down() -> None:
    assert ranges(["b.2", "b.1", "b.0", "c", "d.1", "d.3"]) == ["b.0-2", "c", "d.1", "d.3"]
    assert ranges(["h.1.w", "h.2.w"]) == ["h.1-2.w"]
    assert ranges([]) == []


@given(st.lists(st.sampled_from(["a", "b", "a-2"])))
def test_distinct_names_are_distinct_and_begin_as_they_were(names: list[str]) -> None:
    found = distinct(names)
    assert len(set(found)) == len(names)
    assert all(new.startswith(old) for new, old in zip(found, names, strict=True))
