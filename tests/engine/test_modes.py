"""Modes as forward passes see them, whoever calls `train()`."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import STAGES, Batches, Net, Spy, fit, moved, tensors, trainer
from torch import Tensor, nn
from watched import MID, STEM, Chain, TrainsItself, Watched

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, freeze, unfreeze
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


def test_a_module_that_trains_in_part_stays_in_train_mode() -> None:
    module = Watched()
    fit(module, [FreezeLayers(["stem.1.weight", "mid.0", "mid.1.bias"])])
    assert module.modes() == [{"mid.0"}] * 3


# ---- modules without parameters between frozen ones


class Positioned(nn.Module):
    """A transformer's shape: a parameter of its own between two layers, and Dropout after it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.inner = nn.Module()
        self.inner.position = nn.Parameter(torch.zeros(4))
        self.inner.dropout = nn.Dropout(0.5)
        self.inner.layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner.layers(self.inner.dropout(self.embed(inputs) + self.inner.position))


def test_dropout_between_frozen_modules_is_off_and_at_the_border_it_is_on() -> None:
    module = Chain(nn.Dropout(), nn.Linear(4, 4), nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Linear(4, 4), nn.Dropout())
    fit(module, [FreezeLayers("body")], epochs=1)
    assert module.modes() == [
        {f"body.{place}" for place in ("0", "1", "2.0", "2.1", "3", "4")}
    ]  # all under a frozen module
    module = Chain(nn.Dropout(), nn.Linear(4, 4), nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Linear(4, 4), nn.Dropout())
    fit(module, [FreezeLayers(["body.1", "body.3"]), FreezeLayers("head.bias")], epochs=1)
    assert module.modes() == [{f"body.{place}" for place in ("0", "1", "2.0", "2.1", "3", "4")}]
    module = Chain(nn.Dropout(), nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4))
    fit(module, [FreezeLayers(["body.1", "body.3"])], epochs=1)
    assert module.modes() == [{"body.1", "body.2", "body.3"}]


def test_a_parameter_of_a_parent_does_not_separate_frozen_modules() -> None:
    module = Chain(Positioned())
    fit(module, [FreezeLayers(["*", "!body.0.inner.layers.2", "!head"])], epochs=1)
    inner = "body.0.inner."
    assert module.modes() == [{"body.0.embed", f"{inner}dropout", f"{inner}layers.0"}]


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


# ---- everything goes back


def modes(module: nn.Module) -> dict[str, tuple[bool, bool]]:
    return {name: (part.training, is_held(part)) for name, part in module.named_modules()}


def flags(module: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


def policies() -> list[Any]:
    return [GradualUnfreeze(STAGES, verbose=False), BatchNormEval(affine="freeze"), FreezeLayers("mid", 1)]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_modes_and_flags_are_put_back_after_the_fit(epochs: int) -> None:
    module = Net()
    module.stem[0].weight.requires_grad_(False)
    before = modes(module), flags(module)
    with contextlib.ExitStack() as expected:
        for text in ["never unfrozen"] * (epochs < 3) + ["was to be frozen from epoch 1"] * (epochs < 2):
            expected.enter_context(pytest.warns(UserWarning, match=text))
        fit(module, policies(), epochs)
    assert (modes(module), flags(module)) == before


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode:UserWarning")
def test_modules_that_were_in_eval_mode_before_stay_so_and_are_put_back_so() -> None:
    module = Watched()
    module.mid.eval()
    module.stem[3].eval()
    before = modes(module)
    fit(module, policies()[:2])
    assert module.modes() == [STEM | MID, STEM | MID, MID | {"stem.1", "stem.3"}]
    assert modes(module) == before


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode:UserWarning")
def test_what_freeze_holds_stays_held_through_a_fit_and_after_it() -> None:
    module = Net()
    freeze(module, "stem")
    before, state = modes(module), tensors(module.stem)
    fit(module, [GradualUnfreeze(STAGES, verbose=False), FreezeLayers("stem", 1, 2)])  # both let go of it meanwhile
    assert not moved(state, tensors(module.stem))
    assert modes(module.train()) == before
    unfreeze(module, "stem")
    assert all(part.training for part in module.modules())


@pytest.mark.filterwarnings("ignore:Found .. module.s. in eval mode:UserWarning")
def test_held_modules_are_put_back_in_eval_mode_even_when_train_was_called_since() -> None:
    module = TrainsItself().eval()
    fit(module, [GradualUnfreeze(STAGES, verbose=False)])
    assert module.modes() == [STEM | MID, STEM, set()]
    assert not any(part.training for held in (module.stem, module.mid) for part in held.modules())


@pytest.mark.parametrize(
    "hook",
    ["on_fit_start", "on_train_start", "on_train_epoch_start", "training_step", "validation_step", "on_train_end"],
)
def test_everything_is_put_back_when_the_fit_raises(hook: str) -> None:
    class Failing(Net):
        def fail(self, *_: Any) -> None:
            if hook in ("on_fit_start", "on_train_start", "on_train_end") or self.current_epoch == 1:
                raise RuntimeError("enough")

    setattr(Failing, hook, Failing.fail)
    if hook == "training_step":
        Failing.training_step = lambda self, batch, i: (self.fail(), Net.training_step(self, batch, i))[1]
    if hook == "validation_step":
        Failing.validation_step = lambda self, batch, i: (self.fail(), Net.validation_step(self, batch, i))[1]
    module = Failing()
    module.stem[0].weight.requires_grad_(False)
    before = modes(module), flags(module)
    with pytest.raises(RuntimeError, match="enough"):
        fit(module, policies())
    found = modes(module)
    if hook == "validation_step":  # Lightning leaves a model in eval mode when a validation raises
        found = {name: (before[0][name][0], held) for name, (_, held) in found.items()}
    assert (found, flags(module)) == before


def test_an_interrupted_fit_puts_everything_back() -> None:
    def interrupt(running: Any, _: Any) -> None:
        running.should_stop = True
        raise KeyboardInterrupt

    module = Net()
    before = modes(module), flags(module)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(module, [*policies(), Spy("on_train_batch_end", interrupt)])
    assert (modes(module), flags(module)) == before


def test_validate_test_and_predict_see_no_policy() -> None:
    module, running = Net(), trainer(policies())
    before = modes(module), flags(module), tensors(module)
    running.validate(module, Batches(1), verbose=False)
    running.test(module, Batches(1), verbose=False)
    running.predict(module, Batches(1))
    assert (modes(module), flags(module)) == before[:2]
    assert not moved(before[2], tensors(module))


def test_a_copy_made_during_the_fit_trains_and_evaluates_on_its_own() -> None:
    """An exponential moving average of the weights is such a copy."""
    copies = []

    class Copy(pl.Callback):
        def on_train_batch_end(self, running: Any, module: Any, *_: Any) -> None:
            copies.append(copy.deepcopy(module.stem))

    module = Net()
    fit(module, [GradualUnfreeze(STAGES, verbose=False), Copy()])
    twin = copies[0]
    assert not twin.train()[1].training
    assert module.stem.train()[1].training
