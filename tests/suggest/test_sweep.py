"""Range test: the rate at which the loss turns up."""

from __future__ import annotations

import pytest
import torch
from digits_cnn import DigitNet, Digits
from helpers import tensors

from lightning_freeze.suggest.sweep import HIGHEST, LOWEST, Sweep, sweep
from lightning_freeze.suggest.tasks import task_of
from lightning_freeze.suggest.ways import spec


def test_the_turning_point_is_where_the_loss_was_lowest() -> None:
    losses = [2.3] * 5 + [2.0, 1.5, 1.2, 1.4, 3.0]
    rates = [10.0 ** (place - 8) for place in range(10)]
    assert Sweep(tuple(rates), tuple(losses)).turning == rates[7]


@pytest.mark.parametrize("losses", [[2.3] * 12, [2.3, 2.29, 2.28] * 4, [2.3, 1.0]])
def test_a_loss_that_never_falls_tells_nothing(losses: list[float]) -> None:
    assert Sweep(tuple(10.0**-k for k in range(len(losses))), tuple(losses)).turning is None


def test_rates_climb_evenly_and_nothing_of_the_users_changes() -> None:
    module = DigitNet()
    before = tensors(module)
    found = sweep(task_of(module, Digits(), {"max_epochs": 2, "accelerator": "cpu"}), [], 20)
    assert found.rates[0] == LOWEST
    assert 0.01 < found.rates[-1] <= HIGHEST * (1 + 1e-9)
    ratios = [later / earlier for earlier, later in zip(found.rates, found.rates[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert found.turning is not None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_early_minimum_of_a_noisy_loss_is_not_taken_for_the_end_of_the_range() -> None:
    losses = [2.3] * 5 + [2.0] + [2.2] * 12 + [3.0]
    rates = [10.0 ** (place / 3 - 5) for place in range(len(losses))]
    assert Sweep(tuple(rates), tuple(losses)).turning == rates[17] / 10


def test_callbacks_that_cannot_work_tell_nothing() -> None:
    task = task_of(DigitNet(), Digits(), {"max_epochs": 2, "accelerator": "cpu"})
    assert sweep(task, [spec("FreezeLayers", patterns="neck")], 20).turning is None
