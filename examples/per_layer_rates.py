"""A learning rate for each stage of a ResNet, under four schedules; the picture shows the rates that were used.

    python examples/per_layer_rates.py [FOLDER]                                      # four runs and a picture
    python examples/per_layer_rates.py fit --config examples/per_layer_rates.yaml    # one of them, from YAML

`LayerwiseLR` gives each stage its factor, and whatever the scheduler does is done to all of them alike: under StepLR,
under OneCycleLR, while stages are unfrozen one by one with a warm-up each, and with factors that `LayerAdaptiveLR`
computes anew at each step. `FreezeMonitor` logs the rate of each stage as the optimizer used it.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from middle_layer import Digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR
from torchvision.models.resnet import BasicBlock, ResNet

from lightning_freeze import FreezeMonitor, GradualUnfreeze, LayerAdaptiveLR, LayerwiseLR

STAGES: list[Any] = ["model.fc", "model.layer4", "model.layer3", ["model.layer[12]", "model.conv1", "model.bn1"]]
SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda optimizer, steps: StepLR(optimizer, steps // 4, 0.5),
    "OneCycleLR": lambda optimizer, steps: OneCycleLR(optimizer, 1e-3, total_steps=steps),
    "CosineAnnealingLR": CosineAnnealingLR,
}


class DigitsNet(L.LightningModule):
    """A small ResNet on images of digits, enlarged to 32 by 32 pixels.

    Args:
        scheduler: "StepLR", "OneCycleLR" or "CosineAnnealingLR", stepped after each step of the optimizer.
    """

    def __init__(self, scheduler: str = "StepLR") -> None:
        super().__init__()
        self.scheduler = scheduler
        self.model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images = nn.functional.interpolate(batch[0].view(-1, 1, 8, 8), size=(32, 32)).expand(-1, 3, -1, -1)
        return nn.functional.cross_entropy(self.model(images), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = SCHEDULERS[self.scheduler](optimizer, int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


RUNS: dict[str, tuple[str, list[Any]]] = {
    "LayerwiseLR(0.5), StepLR": ("StepLR", [LayerwiseLR(0.5, stages=STAGES)]),
    "LayerwiseLR(0.5), OneCycleLR": ("OneCycleLR", [LayerwiseLR(0.5, stages=STAGES)]),
    "GradualUnfreeze with warm-up, LayerwiseLR(0.5), cosine": (
        "CosineAnnealingLR",
        [GradualUnfreeze(STAGES, warmup_steps=5, verbose=False), LayerwiseLR(0.5)],
    ),
    "LayerAdaptiveLR, cosine": ("CosineAnnealingLR", [LayerAdaptiveLR(stages=STAGES)]),
}


def rates_of(name: str, folder: Path, epochs: int, steps: int) -> dict[str, list[tuple[int, float]]]:
    """Stage -> (step, rate) of a run, as `FreezeMonitor` logged them; a rate of 0 is a frozen stage."""
    scheduler, callbacks = RUNS[name]
    L.seed_everything(0, verbose=False)
    logger = CSVLogger(folder, name="", version=str(list(RUNS).index(name)))
    L.Trainer(
        max_epochs=epochs, limit_train_batches=steps, callbacks=[*callbacks, FreezeMonitor()], logger=logger,
        log_every_n_steps=1, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(DigitsNet(scheduler), Digits())  # fmt: skip
    rates = defaultdict(list)
    with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if key.startswith("freeze/lr/") and value:
                    rates[key.removeprefix("freeze/lr/")].append((int(row["step"]), float(value)))
    return rates


def main(folder: str = "per_layer_rates", epochs: int = 4, steps: int = 15) -> Path:
    """Four runs of `epochs` times `steps` batches, and a picture of their rates."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for axis, name in zip(axes.flat, RUNS, strict=True):
        for stage, points in rates_of(name, Path(folder), epochs, steps).items():
            axis.plot(*zip(*[(step, rate or float("nan")) for step, rate in points], strict=True), label=stage)
        axis.set(title=name, xlabel="step", ylabel="learning rate", yscale="log")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    path = Path(folder, "rates.png")
    figure.savefig(path, dpi=100)
    print(f"the rates of all stages in four runs: {path}")
    return path


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "fit":
        LightningCLI(save_config_callback=None)  # the YAML names the model and the data
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "per_layer_rates")
