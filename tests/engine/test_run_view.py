"""A view of a run shows how it is at one moment and changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from lightning_freeze import FreezeAudit, FreezeLayers, GradualUnfreeze, LayerwiseLR
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.schedule.moments import Progress


@pytest.fixture
def run() -> Reconciler:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    model[1].eval()
    policies = [GradualUnfreeze(["2", "0"]), LayerwiseLR(0.5), FreezeAudit(), FreezeLayers("1")]
    return Reconciler(model, policies, [torch.optim.SGD(model.parameters(), 0.4)])


def test_a_view_is_of_its_moment_and_stays_so(run: Reconciler) -> None:
    run.reconcile(Progress())
    before = run.view
    run.reconcile(Progress(1, 5))
    after = run.view
    assert before.trainable == {"2.weight", "2.bias"}
    assert after.trainable == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert (before.progress, after.progress) == (Progress(), Progress(1, 5))
    assert {after.index.spans[place].name for place in before.held} >= {"0", "1"}


def test_slots_show_stage_rate_and_whether_they_train(run: Reconciler) -> None:
    run.reconcile(Progress())
    found = {slot.label: (slot.factor, slot.lr, slot.trains) for slot in run.view.slots}
    assert found == {"2": (1.0, 0.4, True), "0": (0.5, 0.2, False), "": (1.0, 0.4, False)}


def test_rows_and_titles_are_those_of_the_policies_that_decide(run: Reconciler) -> None:
    run.reconcile(Progress())
    assert [row.name for row in run.view.rows] == ["2", "0", "FreezeLayers"]
    assert run.view.deciding == ["GradualUnfreeze", "LayerwiseLR", "FreezeLayers"]


def test_modes_from_before_are_known(run: Reconciler) -> None:
    run.reconcile(Progress())
    view = run.view
    modes = {span.name: view.training_before(place) for place, span in view.index.places}
    assert modes == {"": True, "0": True, "1": False, "2": True}


def test_a_view_cannot_be_written(run: Reconciler) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.view.trainable = frozenset()  # type: ignore[misc]
