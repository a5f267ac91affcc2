"""Callbacks and stages show the call that makes them, and a table in a notebook."""

from __future__ import annotations

import pytest

import lightning_freeze
from lightning_freeze import FreezeLayers, GradualUnfreeze, LayerwiseLR, RotatingUnfreeze, Stage

THINGS = [
    GradualUnfreeze(["head", "body"], at=[0, 2], warmup_steps=5),
    GradualUnfreeze(),
    FreezeLayers("model.<conv1>", stop=3),
    LayerwiseLR(multipliers={"a": 0.1}),
    RotatingUnfreeze(["a", "b"], order="descending"),
    Stage("head", ["model.fc"]),
]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: type(thing).__name__)
def test_the_representation_makes_an_equal_one(thing: object) -> None:
    again = eval(repr(thing), vars(lightning_freeze) | {type(thing).__name__: type(thing)})
    assert type(again) is type(thing)
    assert repr(again) == repr(thing)


def test_defaults_are_left_out() -> None:
    assert repr(THINGS[0]) == "GradualUnfreeze(stages=['head', 'body'], at=[0, 2], warmup_steps=5)"


def test_a_notebook_shows_a_table_and_no_foreign_markup() -> None:
    shown = THINGS[2]._repr_html_()  # type: ignore[attr-defined]
    assert shown.startswith("<table>")
    assert "model.&lt;conv1&gt;" in shown
    assert "Stage head" in Stage("head", ["a"])._repr_html_()
