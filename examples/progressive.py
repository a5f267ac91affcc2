"""Freeze from the input upwards as training goes on: the time it saves, and the accuracy it costs.

python examples/progressive.py                                              # never, by the clock, by the gradient
python examples/progressive.py fit --config examples/progressive.yaml       # by the clock, from YAML
"""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table
from rotating import STAGES, DigitNet, train

from lightning_freeze import ProgressiveFreeze

ALL: list[Any] = ["head", *STAGES, "stem"]


class Trained(L.Callback):
    """How many parameters each step trained, on average, as a share of all."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in pl_module.parameters()]
        self.shares.append(sum(size for size, trains in sizes if trains) / sum(size for size, _ in sizes))

    @property
    def mean(self) -> float:
        return sum(self.shares) / len(self.shares)


def main(epochs: int = 10) -> dict[str, tuple[float, float]]:
    """Train in three ways, and print what each trained."""
    table = Table("freezes", "parameters trained", "seconds", "accuracy", title="AdamW on digits")
    found = {}
    for name, more in {
        "never": [],
        "by the clock (FreezeOut)": [ProgressiveFreeze(ALL, span=(0.3, 0.9), verbose=False)],
        "by the gradient (AutoFreeze)": [
            ProgressiveFreeze(ALL, span=(0.2, 0.9), metric="grad_norm", percentile=70, verbose=False)
        ],
    }.items():
        L.seed_everything(0, verbose=False)
        trained, start = Trained(), time.process_time()
        accuracy = train(DigitNet(), [*more, trained], epochs).accuracy()
        found[name] = trained.mean, accuracy
        table.add_row(name, f"{trained.mean:.0%}", f"{time.process_time() - start:.1f}", f"{accuracy:.3f}")
    Console().print(table)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        LightningCLI(save_config_callback=None)  # the YAML names the model and the data
    else:
        main()
