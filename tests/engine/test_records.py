"""Each policy finds its own entry of a checkpoint, whatever the order in the list, or an error says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze import FreezeLayers, GradualUnfreeze, ResumeError, RotatingUnfreeze
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.engine.records import entry_of, load_entries
from lightning_freeze.schedule.moments import Progress


def bound(*policies: Any) -> list[Any]:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for policy in policies:
        policy.bind(Context(model))
    return list(policies)


def gradual(metric: str, **options: Any) -> GradualUnfreeze:
    return GradualUnfreeze(["1", "0"], monitor=metric, **{"patience": 2} | options)


def test_two_policies_over_the_same_stages_keep_their_own_state_in_another_order() -> None:
    loss, accuracy = bound(gradual("loss"), gradual("accuracy", mode="max"))
    loss.load_state_of_run({"started": 2})
    saved = [entry_of(loss), entry_of(accuracy)]
    resumed = bound(gradual("accuracy", mode="max"), gradual("loss"))
    load_entries(resumed, saved)
    assert [policy.state_of_run()["started"] for policy in resumed] == [1, 2]


def test_two_classes_over_the_same_stages_do_not_take_each_others_state() -> None:
    first, rotating = bound(GradualUnfreeze(["1", "0"]), RotatingUnfreeze(["1", "0"]))
    first.load_state_of_run({"started": 2})
    resumed = bound(RotatingUnfreeze(["1", "0"]), GradualUnfreeze(["1", "0"]))
    load_entries(resumed, [entry_of(first), entry_of(rotating)])
    assert resumed[1].state_of_run()["started"] == 2


def test_one_policy_may_change_arguments_that_are_not_its_stages() -> None:
    before = bound(gradual("loss"))[0]
    before.load_state_of_run({"started": 2})
    after = bound(gradual("loss", patience=5))[0]
    load_entries([after], [entry_of(before)])
    assert after.state_of_run()["started"] == 2


def test_it_is_not_guessed_which_of_two_changed_policies_is_which() -> None:
    saved = [entry_of(policy) for policy in bound(gradual("loss"), gradual("accuracy"))]
    with pytest.raises(ResumeError, match=r"(?s)several GradualUnfreeze over the same stages.*'loss'.*patience=7"):
        load_entries(bound(gradual("loss", patience=7), gradual("accuracy", patience=7)), saved)


def test_other_stages_are_refused_with_both_sides() -> None:
    saved = [entry_of(policy) for policy in bound(GradualUnfreeze(["1", "0"]))]
    with pytest.raises(ResumeError, match=r"(?s)does not fit GradualUnfreeze.*Checkpoint: 1 \['1'\], 0.*This run:   0"):
        load_entries(bound(GradualUnfreeze(["0"])), saved)


def test_the_snapshot_of_a_policy_is_saved_and_loaded() -> None:
    before, after = bound(gradual("loss"), gradual("loss"))
    before.snapshot = {"parameters": {"0.weight": 1}}
    load_entries([after], [entry_of(before)])
    assert after.snapshot == {"parameters": {"0.weight": 1}}


def test_another_number_of_optimizers_is_refused_with_what_to_do() -> None:
    def run_of(parts: int) -> Reconciler:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        groups = [list(model.parameters())] if parts == 1 else [list(layer.parameters()) for layer in model]
        run = Reconciler(model, [FreezeLayers("0")], [torch.optim.SGD(group, 0.1) for group in groups])
        run.reconcile(Progress())
        return run

    with pytest.raises(ResumeError, match=r"(?s)holds 2 optimizers, this run has 1.*configure_optimizers that wrote"):
        run_of(1).load(run_of(2).record())
