"""Handwritten digits: a network trained on half of them is fine-tuned on the others, with a cache of what is frozen.

python examples/cached_digits.py fit --config examples/cached_digits.yaml
lightning-freeze savings --config examples/cached_digits.yaml
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def digits(labels: range) -> TensorDataset:
    """The 8x8 images of some digits, 0 to 1, and their labels from 0 on."""
    found = load_digits()
    images, targets = torch.tensor(found.images, dtype=torch.float32) / 16, torch.tensor(found.target)
    chosen = (targets >= labels.start) & (targets < labels.stop)
    return TensorDataset(images[chosen].unsqueeze(1), targets[chosen] - labels.start)


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class DigitNet(pl.LightningModule):
    """Three convolutions and a linear head, for five classes.

    Args:
        lr: of AdamW.
        width: channels of the convolutions.
    """

    def __init__(self, lr: float = 3e-3, width: int = 32) -> None:
        super().__init__()
        self.lr = lr
        self.stem, self.middle, self.last = block(1, width), block(width, width), block(width, width)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(16 * width, 5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.pool(self.last(self.middle(self.stem(images)))))
        return out

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Digits(pl.LightningDataModule):
    """The digits 5 to 9.

    Args:
        batch_size: images of a step.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(digits(range(5, 10)), batch_size=self.batch_size, shuffle=True)


if __name__ == "__main__":
    LightningCLI()  # the YAML names the model and the data
