"""What two processes send and how long a step takes, under DDP, while a part of the model is frozen.

    python benchmarks/ddp.py [--json FILE]

Three ways, in turn, in one run: with this package (the reducer holds what trains), with everything in the reducer
and `find_unused_parameters` (frozen after the model was wrapped, as callbacks that only set `requires_grad` do),
and with everything trainable. Gloo on the CPU, one thread each; NCCL on a machine with several GPUs.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_freeze import FreezeLayers
from lightning_freeze.trainer.session import session_of

STEPS, WARMUP, ROUNDS = 8, 2, 2
GPU = torch.cuda.device_count() > 1


class Classifier(LightningModule):
    """Any network, trained with SGD on random inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.model(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def resnet18() -> nn.Module:
    """11.7 million parameters in 62 tensors."""
    from torchvision.models import resnet18 as build

    return build()  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    """101 million parameters: six layers of 4096 x 4096 and a head."""
    return nn.Sequential(*[nn.Sequential(nn.Linear(4096, 4096), nn.ReLU()) for _ in range(6)], nn.Linear(4096, 10))


# the network, the shape of a batch, and what is frozen in each case
Setup = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, list[str]]]
MODELS: dict[str, Setup] = {
    "ResNet-18": (
        resnet18,
        (4, 3, 96, 96),
        {"head only": ["*", "!model.fc"], "half frozen": ["*", "!model.fc", "!model.layer4.1"]},
    ),
    "MLP, 101M": (
        mlp,
        (8, 4096),
        {"head only": ["*", "!model.6"], "half frozen": ["model.0", "model.1", "model.2"]},
    ),
}


class Freeze(FreezeLayers):
    """Unfreezes before the last step, and takes the time."""

    verbose = False

    def __init__(self, patterns: list[str]) -> None:
        super().__init__(patterns, stop=STEPS - 1, unit="step", eval_frozen=False)
        self.change_ms = 0.0

    def on_train_batch_start(self, trainer: Trainer, *rest: Any) -> None:
        due = trainer.global_step >= session_of(trainer).next_step
        start = time.perf_counter()
        super().on_train_batch_start(trainer, *rest)
        if due:
            self.change_ms = 1e3 * (time.perf_counter() - start)


class FreezeByHand(Callback):
    """Freezes what the model was already wrapped with."""

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = patterns

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from lightning_freeze import freeze

        freeze(pl_module, self.patterns, eval_mode=False)


class Meter(Callback):
    """Milliseconds of each step but the first few and the last, and bytes in the reducer before the last."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.sent = 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if GPU:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if trainer.global_step == STEPS - 2:
            self.sent = int(trainer.strategy.model._get_ddp_logging_data()["total_parameter_size_bytes"])  # type: ignore[union-attr]

    def median_ms(self) -> float:
        """Of the steps before the change."""
        times = self.times[WARMUP : STEPS - 1]
        return 1e3 * statistics.median(after - before for before, after in pairwise(times))


def train(model: str, callbacks: list[Callback], strategy: str) -> tuple[float, int]:
    """Milliseconds per step and bytes in the reducer of one variant. A callback would keep the model (`log`)."""
    gc.collect()  # a Trainer is in cycles: the networks of finished runs would pile up
    build, shape, _ = MODELS[model]
    torch.manual_seed(0)
    meter = Meter()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(
        accelerator="gpu" if GPU else "cpu",
        devices=2,
        strategy=strategy,
        max_steps=STEPS,
        max_epochs=1,
        callbacks=[*callbacks, meter],
        use_distributed_sampler=False,
        **quiet,
    )
    data = torch.utils.data.TensorDataset(torch.randn(shape[0] * STEPS, *shape[1:]))
    trainer.fit(Classifier(build()), torch.utils.data.DataLoader(data, batch_size=shape[0]))
    return meter.median_ms(), meter.sent


def measure(model: str, case: str) -> dict[str, float]:
    """Medians of rounds in which the three ways take turns."""
    patterns = MODELS[model][2][case]
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        freeze = Freeze(patterns)
        ways = {
            "package": train(model, [freeze], "ddp"),
            "find_unused": train(model, [FreezeByHand(patterns)], "ddp_find_unused_parameters_true"),
            "all_trainable": train(model, [], "ddp"),
        }
        for way, (ms, sent) in ways.items():
            found.setdefault(f"{way}_ms", []).append(ms)
            found.setdefault(f"{way}_bytes", []).append(sent)
        found.setdefault("change_ms", []).append(freeze.change_ms)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Run on both ranks; rank 0 reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    results = {f"{model}, {case}": measure(model, case) for model in MODELS for case in MODELS[model][2]}
    if int(os.environ.get("LOCAL_RANK", 0)) != 0:
        return
    backend = "NCCL" if GPU else "gloo"
    table = Table("what", title=f"DDP, 2 processes, {backend}: MiB in the reducer and ms per step, medians of {ROUNDS}")
    for column in ("package", "find_unused", "all trainable", "one change, ms"):
        table.add_column(column, justify="right")
    for name, figures in results.items():
        ways = ("package", "find_unused", "all_trainable")
        cells = [f"{figures[f'{way}_bytes'] / 2**20:.2f} MiB\n{figures[f'{way}_ms']:.0f} ms" for way in ways]
        table.add_row(name, *cells, f"{figures['change_ms']:.1f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
