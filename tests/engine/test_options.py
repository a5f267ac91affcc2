"""Options of several policies add up, and may not contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_freeze import GroupOptions, PlanError
from lightning_freeze.engine.declarations import Binding
from lightning_freeze.engine.options import merged_options


def merged(*options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    policies = [GroupOptions({"*": {"weight_decay": 0.0}}) for _ in options]
    return merged_options(policies, [Binding(options=given) for given in options])


def test_options_of_all_policies_add_up_by_parameter() -> None:
    first, second = {"a": {"eps": 1.0}, "b": {"eps": 2.0}}, {"a": {"weight_decay": 0.5}, "c": {"eps": 3.0}}
    assert merged(first, second) == {"a": {"eps": 1.0, "weight_decay": 0.5}, "b": {"eps": 2.0}, "c": {"eps": 3.0}}
    assert first == {"a": {"eps": 1.0}, "b": {"eps": 2.0}}


def test_the_same_value_twice_is_once() -> None:
    assert merged({"a": {"eps": 1.0}}, {"a": {"eps": 1.0}}) == {"a": {"eps": 1.0}}
    assert merged({}, {}) == {}


def test_two_values_of_one_option_are_refused_with_both() -> None:
    with pytest.raises(PlanError, match=r"GroupOptions: eps=2\.0 is asked for 'a', and another callback asks for 1\.0"):
        merged({"a": {"eps": 1.0}}, {"a": {"eps": 2.0}})
