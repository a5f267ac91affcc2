"""What an audit remembers between two looks. FreezeAudit itself: tests/callbacks/test_freeze_audit.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_freeze import FreezeLayers, GradualUnfreeze
from lightning_freeze.auditing.watcher import Watcher, differing
from lightning_freeze.engine.declarations import Change
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.schedule.moments import Progress


class Watched:
    """A small run in a plain loop with a watcher."""

    def __init__(self, *policies: Any, ignored: Any = ()) -> None:
        self.model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.run = Reconciler(self.model, policies, [self.optimizer])
        self.run.reconcile(Progress())
        self.watcher = Watcher(lambda: self.run.view, ignored)

    def step(self, progress: Progress) -> Change:
        done = self.run.reconcile(progress)
        if done:
            self.watcher.follow(done)
        self.optimizer.zero_grad()
        self.model(torch.randn(4, 2)).sum().backward()
        self.optimizer.step()
        return done

    def found(self) -> list[str]:
        return [f"{one.name} {one.found}" for one in self.watcher.audit([self.optimizer], "now")]


def test_a_clean_run_has_no_violation_at_any_change() -> None:
    watched = Watched(GradualUnfreeze(["2", "1", "0"]))
    for epoch in range(4):
        for step in range(3):
            watched.step(Progress(epoch, epoch * 3 + step))
        assert watched.found() == []


def test_a_move_is_reported_until_it_is_accepted() -> None:
    watched = Watched(FreezeLayers("0"))
    watched.step(Progress(0, 1))
    with torch.no_grad():
        watched.model[0].weight.add_(1)
    assert watched.found() == ["0.weight is frozen and has moved"] == watched.found()
    watched.watcher.accept()
    assert watched.found() == []


def test_what_is_ignored_may_be_written() -> None:
    watched = Watched(FreezeLayers("0"), ignored=["0.weight"])
    watched.step(Progress(0, 1))
    with torch.no_grad():
        watched.model[0].weight.add_(1)
        watched.model[0].bias.add_(1)
    assert watched.found() == ["0.bias is frozen and has moved"]


def test_what_was_frozen_again_is_held_to_its_new_bits() -> None:
    watched = Watched(FreezeLayers("0", start=1))
    for step in range(12):
        watched.step(Progress(0, step))
    watched.step(Progress(1, 12))
    assert {"0.weight", "0.bias"} <= set(watched.watcher.hashes)
    assert watched.found() == []
    with torch.no_grad():
        watched.model[0].bias.add_(1)
    assert watched.found() == ["0.bias is frozen and has moved"]


def test_ranks_are_compared_tensor_by_tensor() -> None:
    watched = Watched(FreezeLayers("0"), ignored=["0.bias"])
    mine = watched.watcher.fingerprint()
    other = mine | {"0.bias": 1, "2.weight": 2}
    assert [f"{one.name} {one.found}" for one in differing([mine, other], watched.watcher)] == [
        "2.weight has other bits on rank 1 than on rank 0"
    ]


def test_closing_leaves_the_optimizer_alone() -> None:
    watched = Watched(GradualUnfreeze(["2", "0"]))
    assert watched.optimizer._optimizer_step_post_hooks
    watched.watcher.close()
    assert not watched.optimizer._optimizer_step_post_hooks
