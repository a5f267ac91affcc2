"""Modes as forward passes see them, whoever calls `train()`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from helpers import STAGES, fit, moved, tensors
from torch import nn
from watched import MID, STEM, TrainsItself, Watched

from lightning_freeze import FreezeLayers, GradualUnfreeze, freeze, unfreeze
from lightning_freeze.engine.modes import hold, is_held, release


@pytest.mark.parametrize("model", [Watched, TrainsItself])
@pytest.mark.parametrize("val", [1, 0.5], ids=["validation each epoch", "twice an epoch"])
def test_frozen_stages_run_in_eval_mode_and_the_rest_in_train_mode(model: Any, val: float) -> None:
    module = model()
    fit(module, [GradualUnfreeze(STAGES, verbose=False)], num_sanity_val_steps=1, val_check_interval=val)
    assert module.modes() == [STEM | MID, STEM, set()]


@pytest.mark.parametrize("model", [Watched, TrainsItself])
def test_a_stage_frozen_again_runs_in_eval_mode_again(model: Any) -> None:
    module = model()
    fit(module, [FreezeLayers("mid", 1, 2), FreezeLayers("stem", 4, unit="step")])
    assert module.modes() == [set(), MID, STEM]


def test_eval_frozen_off_leaves_modes_alone_and_statistics_drift() -> None:
    module = Watched()
    before = tensors(module)
    fit(module, [FreezeLayers("stem", eval_frozen=False), FreezeLayers("mid")])
    assert module.modes() == [MID] * 3
    assert {"stem.1.running_mean", "stem.1.running_var"} <= moved(before, tensors(module))


def test_a_second_policy_may_hold_what_a_first_froze_without() -> None:
    """What trains does not change in epochs 1 and 2, only who wants it frozen."""
    module = Watched()
    fit(module, [FreezeLayers("stem", eval_frozen=False), FreezeLayers("stem", 1, 2)])
    assert module.modes() == [set(), STEM, set()]


def test_a_stage_that_someone_else_keeps_frozen_is_released_from_ours() -> None:
    module = Watched()
    fit(module, [GradualUnfreeze(STAGES, verbose=False), FreezeLayers("stem", eval_frozen=False)])
    assert module.modes() == [STEM | MID, STEM, set()]


# ---- hold and release


def test_a_held_module_ignores_train_and_its_children_do_not() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    hold(module)
    assert not module.training
    assert module[1].training
    assert module.train() is module
    assert not module.training
    module.eval()
    assert not module[1].training
    module.train()
    assert module[1].training
    assert is_held(module)
    release(module)
    assert module.training
    assert not is_held(module)


@pytest.mark.parametrize("trained_since", [True, False])
def test_release_gives_back_the_mode_from_before_or_train_mode_when_asked_for_since(trained_since: bool) -> None:
    module = nn.BatchNorm1d(2).eval()
    hold(module)
    hold(module)  # twice is once
    if trained_since:
        module.train()
    release(module)
    release(module)
    assert module.training == trained_since
    assert "train" not in vars(module)
    assert vars(module).keys() == vars(nn.BatchNorm1d(2)).keys()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
def test_a_held_module_can_be_copied_and_the_copy_is_independent(copied: Callable[[Any], Any]) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    hold(module[1])
    twin = copied(module)
    twin.train()
    assert is_held(twin[1])
    assert not twin[1].training
    release(twin[1])
    assert twin[1].training
    assert not module[1].training
    assert is_held(module[1])
    module.train()
    assert not module[1].training


def test_state_dicts_know_nothing_of_it() -> None:
    module = nn.BatchNorm1d(2)
    hold(module)
    assert module.state_dict().keys() == nn.BatchNorm1d(2).state_dict().keys()


def test_freeze_and_unfreeze_in_a_plain_loop_hold_and_release() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 2), nn.BatchNorm1d(2))
    freeze(module, ["0", "1", "3"])
    assert [layer.training for layer in module.train()] == [False, False, False, False, True]
    unfreeze(module, "1.bias")
    assert [layer.training for layer in module.train()] == [False, True, True, False, True]
    unfreeze(module, "*")
    assert all(layer.training for layer in module.train())
    assert not any(map(is_held, module.modules()))
