"""Data between policies and the reconciler."""

from __future__ import annotations

import dataclasses

import pytest

from lightning_freeze.engine.declarations import Binding, Change, Row, Wants


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Change)])
def test_a_change_is_true_exactly_when_something_changed(field: str) -> None:
    assert not Change()
    assert Change(**{field: True if field == "reducer" else ("x",)})


def test_wants_are_compared_without_the_snapshot_to_restore() -> None:
    assert Wants(frozenset("a"), restore={"parameters": {}}) == Wants(frozenset("a"))
    assert Wants(frozenset("a"), "drop") != Wants(frozenset("a"))


@pytest.mark.parametrize("made", [Binding(), Wants(), Change(), Row("a", (), "", ())])
def test_declarations_cannot_be_changed(made: object) -> None:
    name = dataclasses.fields(made)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, None)
