"""Train one block at a time: how much optimizer state that takes, and what it does to the accuracy.

python examples/rotating.py                                           # everything, and one block at a time
python examples/rotating.py fit --config examples/rotating.yaml       # one block at a time, from YAML
"""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from middle_layer import Digits
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_freeze import RotatingUnfreeze

STAGES: list[Any] = ["blocks.3", "blocks.2", "blocks.1", "blocks.0"]  # the head first


class DigitNet(L.LightningModule):
    """A stem, four blocks of equal size and a head, on digits of 8 by 8 pixels; SGD or AdamW."""

    def __init__(self, lr: float = 3e-3, adam: bool = True) -> None:
        super().__init__()
        self.lr, self.adam = lr, adam
        self.stem, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(4)])

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(pixels)))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if self.adam else torch.optim.SGD
        optimizer: torch.optim.Optimizer = kind(self.parameters(), lr=self.lr)
        return optimizer

    def accuracy(self) -> float:
        """On all digits; what it learnt from is among them, which serves to compare."""
        pixels, labels = load_digits(return_X_y=True)
        with torch.no_grad():
            right = self(torch.tensor(pixels, dtype=torch.float32) / 16).argmax(1) == torch.tensor(labels)
        return float(right.float().mean())


class StateBytes(L.Callback):
    """The most bytes of optimizer state after any step."""

    def __init__(self) -> None:
        self.most = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        values = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
        self.most = max(self.most, sum(value.nbytes for value in values if isinstance(value, Tensor) and value.dim()))


def train(model: DigitNet, callbacks: list[L.Callback], epochs: int) -> DigitNet:
    """Fit without any output."""
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, Digits())
    return model


def main(epochs: int = 10) -> dict[str, tuple[int, float]]:
    """Train in three ways, and print the state they hold."""
    table = Table("", "most optimizer state", "accuracy", title="AdamW on digits")
    found = {}
    for name, more in {
        "everything": [],
        "one block of four, drawn (LISA)": [
            RotatingUnfreeze(STAGES, always=["stem", "head"], every_n_train_steps=20, verbose=False)
        ],
        "one of six in turn (BAdam)": [
            RotatingUnfreeze(["head", *STAGES, "stem"], every_n_train_steps=20, order="descending", verbose=False)
        ],
    }.items():
        L.seed_everything(0, verbose=False)
        state = StateBytes()
        accuracy = train(DigitNet(), [*more, state], epochs).accuracy()
        found[name] = state.most, accuracy
        table.add_row(name, f"{state.most:,} bytes", f"{accuracy:.3f}")
    Console().print(table)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        LightningCLI(save_config_callback=None)  # the YAML names the model and the data
    else:
        main()
