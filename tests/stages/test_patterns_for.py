"""Names to patterns: short, and exactly the selection."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_models import models
from torch import nn

from lightning_freeze import select
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.stages.patterns_for import patterns_for

SEVEN = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abcdefg"})


def patterns(model: nn.Module, *chosen: str) -> list[str]:
    """The patterns of a selection, checked."""
    names = select(model, list(chosen))
    found = patterns_for(ModelIndex(model), names)
    assert select(model, found) == names
    return found


def test_everything_is_a_star_and_a_whole_module_is_its_name() -> None:
    assert patterns(SEVEN, "*") == ["*"]
    assert patterns(nn.Sequential(SEVEN, nn.Linear(2, 2)), "0") == ["0"]


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ("!d.bias", ["*", "!d.bias"]),
        ("!d", ["*", "!d"]),
        ("![cdg]", ["a", "b", "e", "f"]),  # half as long at least, or it is said without `!`
        ("![de]", ["a", "b", "c", "f", "g"]),
    ],
)
def test_what_is_left_out_is_named_where_that_halves_the_list(left_out: str, expected: list[str]) -> None:
    assert patterns(SEVEN, "*", left_out) == expected


def test_a_tied_parameter_is_covered_once() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(3, 2), "body": nn.Linear(2, 2), "head": nn.Linear(2, 3)})
    model["head"].weight = model["words"].weight
    assert patterns(model, "head") == ["words", "head"]
    assert patterns(model, "words") == ["words"]
    assert patterns(model, "head.bias") == ["head.bias"]


def test_names_that_read_as_something_else_are_written_as_expressions() -> None:
    model = nn.ModuleDict({"!a": nn.Linear(2, 2), "a*": nn.Linear(2, 2), "ab": nn.Linear(2, 2)})
    assert patterns(model, r"re:a\*\..*") == [r"re:a\*\..*"]
    assert patterns(model, r"re:\!a\.bias") == [r"re:!a\.bias"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.data())
def test_the_patterns_of_a_selection_select_it(model: nn.Module, data: st.DataObject) -> None:
    index = ModelIndex(model)
    names = list(index.parameters)
    if names:
        chosen = set(data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1)))
        assert select(model, patterns_for(index, chosen)) == [name for name in names if name in chosen]
