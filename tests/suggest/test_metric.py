"""Which logged number judges, and which way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lightning_freeze import PlanError
from lightning_freeze.suggest.metric import LOSS, Metric, choose, direction, value_of


@pytest.mark.parametrize(
    ("logged", "found"),
    [
        (["val_loss", "val_acc"], Metric("val_acc", "max")),
        (["val_loss", "epoch_time"], Metric("val_loss", "min")),
        (["F1"], Metric("F1", "max")),
        ([], Metric(LOSS, "min")),
    ],
)
def test_an_accuracy_comes_before_a_loss(logged: list[str], found: Metric) -> None:
    assert choose(logged, None, None) == found


def test_what_a_callback_watches_comes_before_what_looks_like_an_accuracy() -> None:
    stopping = SimpleNamespace(monitor="val_loss", mode="min")
    assert choose(["val_loss", "val_acc"], None, None, [stopping]) == Metric("val_loss", "min")


def test_what_the_user_names_comes_first() -> None:
    assert choose(["val_loss", "val_acc"], "val_loss", None) == Metric("val_loss", "min")
    assert choose(["a"], "a", "max") == Metric("a", "max")


def test_a_metric_that_is_not_logged_is_an_error() -> None:
    with pytest.raises(PlanError, match="--monitor f1: validation logs val_loss"):
        choose(["val_loss"], "f1", None)


def test_a_name_that_says_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="Say --mode min or max"):
        direction("quux")


def test_more_is_better_whichever_way_the_metric_runs() -> None:
    assert Metric("loss", "min").merit(2.0) < Metric("loss", "min").merit(1.0)
    assert value_of({"a": torch.tensor(0.1)}, Metric("a", "max")) == 0.1
    assert value_of({}, Metric("a", "max")) != value_of({}, Metric("a", "max"))  # NaN
