"""The tasks of a batch, whatever the batch is made of."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_freeze import PlanError
from lightning_freeze.schedule.tasks import describe_batch, names_in, tasks_of

TASKS = ["a", "b"]
Named = namedtuple("Named", ("x", "task"))


@pytest.mark.parametrize(
    ("batch", "tasks"),
    [
        ({"x": 1, "task": "a"}, "a"),
        ({"task": ["a", "b", "a"]}, "ab"),
        ({"task": [["a"], ("b",)]}, "ab"),
        (SimpleNamespace(task="b"), "b"),
        (Named(1, "a"), "a"),
        ([{"task": "a"}, {"task": "b"}], "ab"),
        ({"a": torch.ones(1), "b": None}, "a"),
        ({"one": {"task": "b"}, "two": {"task": "a"}}, "ab"),
        ({"a": 1, "other": 2}, ""),
        (torch.ones(1), ""),
        ("task", ""),
    ],
)
def test_the_tasks_of_a_batch(batch: Any, tasks: str) -> None:
    assert tasks_of(batch, "task", TASKS) == set(tasks)


@pytest.mark.parametrize("value", [3, torch.tensor(1), {"a": 1}, ["a", None], b"a"])
def test_anything_but_names_is_refused(value: Any) -> None:
    with pytest.raises(PlanError, match=r"the batch holds under 'task' a \w+, and a task is a str"):
        tasks_of({"task": value}, "task", TASKS)


def test_a_set_of_names_is_fine() -> None:
    assert set(names_in({"a", "b"}, "it returned")) == {"a", "b"}


def test_batches_are_described_by_what_they_hold() -> None:
    assert describe_batch({}) == "a dict without keys"
    assert describe_batch(()) == "a tuple of nothing"
    assert describe_batch((1, "x")) == "a tuple of int, str"
    assert describe_batch(torch.ones(1)) == "a Tensor"
