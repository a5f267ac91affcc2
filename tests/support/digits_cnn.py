"""A LightningModule and a data module that know nothing of freezing: real 8x8 digits, and a CNN for them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


@lru_cache
def digits() -> tuple[Tensor, Tensor]:
    pictures, labels = load_digits(return_X_y=True)
    return torch.tensor(pictures, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


class Digits(pl.LightningDataModule):
    """The first `count` digits to train on, the last 300 to validate."""

    def __init__(self, count: int = 80, batch_size: int = 16) -> None:
        super().__init__()
        self.count, self.batch_size = count, batch_size

    def setup(self, stage: str) -> None:
        pictures, labels = digits()
        self.train = TensorDataset(pictures[: self.count], labels[: self.count])
        self.val = TensorDataset(pictures[-300:], labels[-300:])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 100)


def block(inside: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


@lru_cache
def pretrained(width: int) -> dict[str, Tensor]:
    """Weights of a body that has learnt digits which lie on their side."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DigitNet(width=width, ready=False)
        pictures, labels = digits()[0][700:1400].rot90(1, (2, 3)), digits()[1][700:1400]
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        for _ in range(60):
            rows = torch.randint(0, 700, (64,))
            nn.functional.cross_entropy(net(pictures[rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.clone() for name, value in net.body.state_dict().items()}


class DigitNet(pl.LightningModule):
    """Four blocks with BatchNorm and a new head; `ready`: the blocks are pretrained."""

    def __init__(self, lr: float = 0.003, width: int = 8, ready: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(block(1, width), block(width, width), nn.MaxPool2d(2), block(width, 2 * width))
        self.head = nn.Linear(2 * width, 10)
        if ready:
            self.body.load_state_dict(pretrained(width))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.body(pictures).mean((2, 3)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
