"""One training step outside a fit: its batch and its loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_freeze.errors import PlanError
from lightning_freeze.preview.one_step import first_batch, loss_of


class Model(pl.LightningModule):
    def __init__(self, result: Any = None, rows: int = 4) -> None:
        super().__init__()
        self.result, self.rows = result, rows

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("seen", batch.sum())
        self.log_dict({"idx": batch_idx})
        return self.result

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(self.rows), batch_size=2)

    def on_before_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return batch + 10

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return 2 * batch


class Short(Model):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return batch.sum()


def test_the_first_batch_passes_both_transfer_hooks() -> None:
    assert first_batch(SimpleNamespace(datamodule=None), Model()).tolist() == [20, 22]


def test_a_loader_without_a_batch_is_an_error() -> None:
    with pytest.raises(PlanError, match="train_dataloader gives no batch"):
        first_batch(SimpleNamespace(datamodule=None), Model(rows=0))


def test_the_loss_is_what_the_step_returns_and_logging_goes_nowhere() -> None:
    loss = torch.ones(())
    for result in (loss, {"loss": loss, "other": 1}):
        model = Model(result)
        assert loss_of(model, torch.ones(2)) is loss
        assert "log" not in vars(model)
        assert "log_dict" not in vars(model)


def test_a_step_without_the_index_of_the_batch_is_called_without_it() -> None:
    assert loss_of(Short(), torch.ones(3)) == 3


def test_a_step_that_returns_no_loss_is_an_error() -> None:
    with pytest.raises(PlanError, match="training_step returned NoneType, not a loss"):
        loss_of(Model(), torch.ones(2))
