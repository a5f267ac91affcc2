"""Freezing the middle one of three linear layers: what each way of doing it stops, and what it does not.

    python examples/middle_layer.py                                               # three ways side by side
    python examples/middle_layer.py fit --config examples/middle_layer.yaml       # the right one, from YAML

`torch.no_grad()` around the middle layer cuts the graph there: no gradient reaches the first layer either, and nothing
says so. `requires_grad = False` freezes the middle layer alone, if nothing has moved it before it was set and its
gradient is None. `FreezeLayers` does the same from outside the model, for a part of the run if wanted.
"""

from __future__ import annotations

import sys
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze import FreezeLayers

LAYERS = ("first", "middle", "last")


class Digits(L.LightningDataModule):
    """1,797 images of handwritten digits, 8 by 8 pixels, as vectors of 64 numbers between 0 and 1."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        pixels, labels = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
        return DataLoader(data, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0))


class ThreeLayers(L.LightningModule):
    """Three linear layers, trained by AdamW.

    Args:
        frozen_by: "no_grad" puts the middle layer under `torch.no_grad()`, "requires_grad" sets the flag of its
            parameters, "nothing" leaves it to a callback.
    """

    def __init__(self, frozen_by: Literal["no_grad", "requires_grad", "nothing"] = "nothing") -> None:
        super().__init__()
        self.frozen_by = frozen_by
        self.first, self.middle, self.last = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        if frozen_by == "requires_grad":
            self.middle.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.first(pixels).relu()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_by != "no_grad"):
            hidden = self.middle(hidden).relu()
        logits: Tensor = self.last(hidden)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def moved(model: ThreeLayers, callbacks: list[L.Callback], epochs: int) -> dict[str, float]:
    """How far each layer has moved after training: the largest change of any of its weights."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, Digits())
    distances = {name: float((after.detach() - before[name]).abs().max()) for name, after in model.named_parameters()}
    return {layer: max(distances[f"{layer}.weight"], distances[f"{layer}.bias"]) for layer in LAYERS}


def main(epochs: int = 2) -> dict[str, dict[str, float]]:
    """Train in three ways, and print who moved."""
    table = Table("the middle layer is frozen by", *LAYERS, title="Largest change of a weight")
    found = {}
    ways: list[tuple[str, Literal["no_grad", "requires_grad", "nothing"], list[L.Callback]]] = [
        ("torch.no_grad() in forward", "no_grad", []),
        ("requires_grad = False", "requires_grad", []),
        ("FreezeLayers('middle')", "nothing", [FreezeLayers("middle")]),
    ]
    for name, frozen_by, callbacks in ways:
        L.seed_everything(0, verbose=False)
        found[name] = moved(ThreeLayers(frozen_by), callbacks, epochs)
        table.add_row(name, *(f"{change:.4f}" if change else "0, exactly" for change in found[name].values()))
    Console().print(table)
    print("Under no_grad the first layer stood still too: its gradient was None, and AdamW left it out in silence.")
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        LightningCLI(save_config_callback=None)  # the YAML names the model and the data
    else:
        main()
