"""One short run: the length that was asked for, on a copy, with the same numbers for the same seed."""

from __future__ import annotations

import math
import signal
from typing import Any

import pytest
import torch
from digits_cnn import DigitNet, Digits
from helpers import Net, tensors

from lightning_freeze.suggest.metric import LOSS
from lightning_freeze.suggest.tasks import task_of
from lightning_freeze.suggest.trial import Task, running, trial
from lightning_freeze.suggest.ways import spec

HEAD = [spec("FreezeLayers", patterns="body")]


def task(module: Any = None, data: Any = None, **options: Any) -> Task:
    options = {"max_epochs": 4, "accelerator": "cpu"} | options
    return task_of(module or DigitNet(), data or Digits(40), options, folds=4)


@pytest.mark.parametrize(("share", "steps"), [(1.0, 8), (0.5, 4), (0.25, 2), (0.1, 1)])
def test_a_run_has_its_share_of_the_steps(share: float, steps: int) -> None:
    found = task()
    assert found.run_steps == 8
    assert trial(found, HEAD, 1.0, 0, share).steps == steps


def test_the_limits_of_the_users_trainer_count() -> None:
    assert task(accumulate_grad_batches=3).run_steps == 4
    assert task(max_epochs=None, max_steps=7).run_steps == 7
    assert task(limit_train_batches=1).run_steps == 4


def test_the_same_run_twice_gives_the_same_number_and_touches_nothing() -> None:
    module = DigitNet()
    before = tensors(module)
    found = task(module)
    first, second = (trial(found, [], 3.0, 1, 0.5) for _ in range(2))
    assert first.value == second.value
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module._trainer


def test_feature_cache_changes_no_bit_of_the_result() -> None:
    found = task()
    cached = [*HEAD, spec("FeatureCache", verbose=False)]
    assert trial(found, cached, 3.0, 0, 1.0).value == trial(found, HEAD, 3.0, 0, 1.0).value


def test_the_rate_is_relative_to_the_modules_own() -> None:
    slow = trial(task(DigitNet(lr=0.03)), [], 0.1, 0, 0.5)
    own = trial(task(DigitNet(lr=0.003)), [], 1.0, 0, 0.5)
    assert slow.value == pytest.approx(own.value)


def test_what_breaks_down_is_a_row_with_the_reason() -> None:
    found = trial(task(), [spec("FreezeLayers", patterns="neck")], 1.0, 0, 0.25)
    assert math.isnan(found.value)
    assert found.error.startswith("PatternError: FreezeLayers: pattern 'neck' matches none")


class Silent(Net):
    """No validation step: the loss is all that there is."""

    validation_step = DigitNet.__mro__[1].validation_step  # Lightning's own

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx)}


def test_without_a_validation_step_the_loss_on_the_fold_judges() -> None:
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(6)]
    found = task_of(Silent(), batches, {"max_epochs": 2, "accelerator": "cpu"}, folds=3)
    assert found.metric.name == LOSS
    before = tensors(found.module)
    assert 0 < trial(found, [], 1.0, 0, 1.0).value < 10
    assert all(torch.equal(value, before[name]) for name, value in found.module.state_dict().items())


def test_ctrl_c_within_a_trainer_is_ctrl_c_again() -> None:
    handler = signal.getsignal(signal.SIGINT)

    class Interrupted(DigitNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise KeyboardInterrupt

    found = task(DigitNet())
    with pytest.raises(KeyboardInterrupt), running():
        found.trainer(max_epochs=1).fit(Interrupted(), Digits())
    assert signal.getsignal(signal.SIGINT) is handler
