"""A fit holds modules in eval mode and gives every mode back."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers import STAGES, Batches, Net, Spy, fit, moved, tensors, trainer
from torch import nn
from watched import MID, STEM, TrainsItself, Watched

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, freeze, unfreeze
from lightning_freeze.engine.modes import is_held


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
    gradual = GradualUnfreeze(["head", ["mid", "stem"]], verbose=False)
    fit(module, [gradual, FreezeLayers("stem", 1, 2)])  # both let go of it meanwhile
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


def modes(module: nn.Module) -> dict[str, tuple[bool, bool]]:
    return {name: (part.training, is_held(part)) for name, part in module.named_modules()}


def flags(module: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


def policies() -> list[Any]:
    return [GradualUnfreeze(STAGES, verbose=False), BatchNormEval(affine="freeze"), FreezeLayers("mid", 1)]
