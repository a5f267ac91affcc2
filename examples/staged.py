"""Staged fine-tuning with everything beside it: rates per stage, held BatchNorm, a proof and a picture.

lightning-freeze preview --config examples/staged.yaml --plot plan.png     # before: what would happen, and when
python examples/staged.py fit --config examples/staged.yaml                # the run; it draws staged_run.png
"""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from middle_layer import Digits
from torch import Tensor, nn
from torch.utils.data import DataLoader


class DigitsWithValidation(Digits):
    """The digits; the same ones to validate on, which is enough to see a curve."""

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train_dataloader().dataset, batch_size=600)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())


class Staged(L.LightningModule):
    """An embedding of the pixels, two blocks and a head; AdamW and a cosine over the run.

    Args:
        lr: learning rate of the head at the first step.
    """

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.lr = lr
        self.embed = nn.Linear(64, 64)
        self.blocks = nn.Sequential(block(64, 64), block(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(pixels)))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


if __name__ == "__main__":
    LightningCLI(save_config_callback=None)  # the YAML names the model and the data
