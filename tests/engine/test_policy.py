"""A policy says nothing until it overrides something, and its three parts do not overlap."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from lightning_freeze import FreezeLayers, GradualUnfreeze
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Wants
from lightning_freeze.engine.policy import Freezing, Policy, Speaking, Stepping, shared_stages
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.schedule.moments import Progress


class Silent(Policy):
    pass


def test_a_policy_without_a_word_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    groups = [dict(group) for group in optimizer.param_groups]
    run = Reconciler(model, [policy := Silent()], [optimizer])
    assert not run.reconcile(Progress())
    assert [dict(group) for group in optimizer.param_groups] == groups
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert (policy.title, policy.bind(Context(model)), policy.wants(Progress())) == ("Silent", Binding(), Wants())
    assert (policy.signature, policy.state_of_run(), policy.snapshot) == (None, {}, None)


def test_the_three_parts_share_no_name() -> None:
    parts = [
        {name for name, _ in inspect.getmembers(part) if not name.startswith("_")}
        for part in (Freezing, Stepping, Speaking)
    ]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert set().union(*parts) == {name for name, _ in inspect.getmembers(Policy) if not name.startswith("_")}


def test_the_arguments_of_a_policy_are_its_constructors() -> None:
    assert FreezeLayers("0", stop=3).arguments.startswith("patterns='0', start=0, stop=3, unit='epoch'")
    assert Silent().arguments in ("", "args=None, kwargs=None")


def test_only_policies_with_stages_share_them() -> None:
    assert shared_stages([FreezeLayers("0"), GradualUnfreeze(["1", "0"]), Silent()]) == [["1", "0"]]
