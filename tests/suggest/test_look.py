"""The first look: stages, costs and gradients, with weights that stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digits_cnn import DigitNet, Digits
from torch import nn

from lightning_freeze import PlanError
from lightning_freeze.suggest.look import Eyes, look
from lightning_freeze.suggest.tasks import task_of

OPTIONS = {"max_epochs": 2, "accelerator": "cpu"}


def test_stages_head_first_with_costs_that_grow_with_depth() -> None:
    found = look(task_of(DigitNet(lr=0.02), Digits(), OPTIONS))
    assert [row.name for row in found.rows] == ["head", "body.3", "body.1", "body.0"]
    assert found.base == 0.02
    assert found.has_norm
    saved = [found.costs[frozenset(range(depth))].saved for depth in range(1, 5)]
    assert saved == sorted(saved)
    assert all(row.ratio > 0 and row.fisher > 0 and row.signal > 0 for row in found.rows)


def test_gradients_are_those_of_the_weights_as_they_are() -> None:
    module = nn.Linear(2, 1, bias=False)
    nn.init.ones_(module.weight)
    eyes = Eyes(2)
    for gradient in ([1.0, 0.0], [3.0, 0.0]):
        module.weight.grad = torch.tensor([gradient])
        eyes.on_before_optimizer_step(None, module, None)
    row = eyes.row("all", ["weight"])
    assert row.ratio == pytest.approx(2 / 2**0.5)  # norm of the mean (2, 0) over the norm of (1, 1)
    assert row.fisher == pytest.approx((1 + 9) / 2 / 2)
    assert row.signal == pytest.approx(4 / 1 / 2)  # squared mean over variance, averaged over two elements


def test_what_was_frozen_before_is_in_no_stage() -> None:
    module = DigitNet()
    module.body[0].requires_grad_(False)
    found = look(task_of(module, Digits(), OPTIONS))
    assert "body.0" not in [row.name for row in found.rows]


def test_a_rate_of_zero_is_an_error() -> None:
    with pytest.raises(PlanError, match="starts with a learning rate of 0"):
        look(task_of(DigitNet(lr=0.0), Digits(), OPTIONS))


def test_a_step_that_cannot_be_measured_is_a_remark() -> None:
    class Odd(DigitNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.trainer.fit_loop.epoch_loop  # noqa: B018 - there is none outside a fit
            if not self.trainer.training:
                raise RuntimeError("only within a fit")
            return super().training_step(batch, batch_idx)

    found = look(task_of(Odd(), Digits(), OPTIONS))
    assert found.costs == {}
    assert any("could not be measured" in remark for remark in found.remarks)
