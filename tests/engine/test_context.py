"""What policies are bound to: disjoint stages, head first."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_freeze import PatternError, PlanError, Stage
from lightning_freeze.engine.context import Context


@pytest.fixture
def context() -> Context:
    return Context(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)), shared=[["2", "0"]])


def test_a_parameter_belongs_to_the_first_stage_that_selects_it(context: Context) -> None:
    top, rest = context.stages(["2.weight", Stage("rest", ["*"])], "A")
    assert top.names == ("2.weight",)
    assert rest.names == ("0.weight", "0.bias", "1.weight", "1.bias", "2.bias")
    assert (top.name, rest.name, rest.patterns) == ("2.weight", "rest", ("*",))


def test_a_stage_without_parameters_says_who_took_them(context: Context) -> None:
    with pytest.raises(PlanError, match=r"A stage '0': .*all 2 belong to earlier stages\.\n  Put the narrower"):
        context.stages(["*", "0"], "A")


def test_names_of_stages_are_unique(context: Context) -> None:
    with pytest.raises(PlanError, match=r"several stages are called \['x'\]"):
        context.stages([Stage("x", ["0"]), Stage("x", ["1"])], "A")


def test_a_pattern_that_matches_nothing_names_the_stage(context: Context) -> None:
    with pytest.raises(PatternError, match="A stage '7'"):
        context.stages(["7"], "A")


def test_stages_are_discovered_once_for_each_limit(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    first = context.stages("auto", "A")
    monkeypatch.setattr("lightning_freeze.engine.context.discover_stages", None, raising=False)
    assert context.stages("auto", "B") == first


def test_policies_offer_their_stages_to_each_other(context: Context) -> None:
    assert context.shared == [["2", "0"]]
    assert context.select("1", "A") == ["1.weight", "1.bias"]
