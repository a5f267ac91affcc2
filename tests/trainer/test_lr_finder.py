"""A rate found by Lightning is spread over slots by their factors; with a real finder: test_averaging."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lightning_freeze import LayerwiseLR
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.trainer.lr_finder import FoundRates


class LearningRateFinder:
    """Lightning's by name; it has found nothing yet."""

    optimal_lr: Any = None


def found(rate: float) -> Any:
    return SimpleNamespace(suggestion=lambda: rate)


def run_of() -> tuple[Reconciler, Any]:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Reconciler(model, [LayerwiseLR(0.5, stages=["1", "0"])], [optimizer])
    run.reconcile(Progress())
    return run, optimizer


def rates(optimizer: Any) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_one_rate_in_all_groups_becomes_one_for_each_factor_once() -> None:
    run, optimizer = run_of()
    spread = FoundRates([finder := LearningRateFinder()])
    spread.spread(run)
    assert sorted(rates(optimizer)) == [0.05, 0.1]
    finder.optimal_lr = found(0.8)
    for group in optimizer.param_groups:
        group["lr"] = 0.8
    spread.spread(run)
    assert sorted(rates(optimizer)) == [0.4, 0.8]
    spread.spread(run)
    assert sorted(rates(optimizer)) == [0.4, 0.8]


def test_a_rate_that_was_not_written_to_the_groups_is_left_alone() -> None:
    run, optimizer = run_of()
    spread = FoundRates([finder := LearningRateFinder()])
    finder.optimal_lr = found(0.8)
    spread.spread(run)
    assert sorted(rates(optimizer)) == [0.05, 0.1]


def test_what_was_found_before_the_split_needs_nothing() -> None:
    run, optimizer = run_of()
    finder = LearningRateFinder()
    finder.optimal_lr = found(0.1)
    spread = FoundRates([finder, object()])
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    spread.spread(run)
    assert rates(optimizer) == [0.1, 0.1]
