"""What the callbacks cost: per step, and per change of stage. Side by side with the same freezing by hand.

    python benchmarks/overhead.py [--json FILE]

Both sides of each pair run in turn, several times, in one process on one thread; the ratios are medians of pairs.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.schedule.moments import Progress

STEPS, PAIRS = 200, 9
STAGES = ["model.3", "model.2", "model.1", "model.0"]


def network(width: int = 192, depth: int = 8) -> nn.Sequential:
    def block() -> list[nn.Module]:
        return [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1)]

    return nn.Sequential(*[nn.Sequential(*[layer for _ in range(depth) for layer in block()]) for _ in range(4)])


class ByHand(LightningModule):
    """Half of the network frozen, BatchNorm of all of it in eval mode, a rate per stage: written down once."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = network()
        self.frozen = frozen

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        return self.model(batch[0]).square().mean()

    def on_train_start(self) -> None:
        if self.frozen:
            self.model[:2].eval()
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if not self.frozen:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)
        self.model[:2].requires_grad_(False)
        groups = [{"params": list(self.model[3 - k].parameters()), "lr": 1e-3 * 0.5**k} for k in range(2)]
        return torch.optim.AdamW(groups)


class StepTimer(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())

    def median_ms(self) -> float:
        return 1e3 * statistics.median(
            after - before for before, after in zip(self.times[20:], self.times[21:], strict=False)
        )


def step_ms(by_hand: bool) -> float:
    timer = StepTimer()
    ours = [
        GradualUnfreeze(STAGES, at=[0, 0, 1000, 1000], warmup_steps=10, verbose=False),
        LayerwiseLR(0.5),
        BatchNormEval(),
        FreezeLayers("model.0", unit="step"),
    ]
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[*([] if by_hand else ours), timer],
        use_distributed_sampler=False,
        **quiet,
    )
    data = torch.utils.data.TensorDataset(torch.randn(64 * STEPS, 192))
    trainer.fit(ByHand(frozen=by_hand), torch.utils.data.DataLoader(data, batch_size=64))
    return timer.median_ms()


def tensors(count: int, stages: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    layers = count // 2 // stages
    model = nn.Sequential(*[nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)]) for _ in range(stages)])
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def change_ms(by_hand: bool, count: int = 10_000, stages: int = 10) -> float:
    """Milliseconds of one change: the median over the stages of a model of `count` tensors."""
    model, optimizer = tensors(count, stages)
    patterns = [str(place) for place in reversed(range(stages))]
    found = []
    if by_hand:
        optimizer = torch.optim.AdamW(model[-1].parameters(), lr=1e-3)
        model[:-1].requires_grad_(False)
        model[:-1].eval()
        changes: list[Callable[[], Any]] = [
            lambda k=k: _by_hand(model[k], optimizer) for k in range(stages - 2, -1, -1)
        ]
    else:
        run = Reconciler(model, [GradualUnfreeze(patterns), LayerwiseLR(0.9)], [optimizer])
        run.reconcile(Progress())
        changes = [lambda k=k: run.reconcile(Progress(k, k)) for k in range(1, stages)]
    for change in changes:
        start = time.perf_counter()
        change()
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found)


def _by_hand(stage: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    stage.requires_grad_(True)
    stage.train()
    optimizer.add_param_group({"params": list(stage.parameters()), "lr": 1e-3})


def compare(measure: Callable[[bool], float], pairs: int) -> dict[str, float]:
    measure(True), measure(False)
    found = [(measure(False), measure(True)) for _ in range(pairs)]
    return {
        "callbacks_ms": statistics.median(ours for ours, _ in found),
        "by_hand_ms": statistics.median(hand for _, hand in found),
        "ratio": statistics.median(ours / hand for ours, hand in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    results = {
        "one training step, all four callbacks": compare(step_ms, PAIRS),
        "one stage change, 10 stages of 1,000 tensors": compare(change_ms, PAIRS),
        "one stage change, 2 stages of 5,000 tensors": compare(lambda hand: change_ms(hand, stages=2), PAIRS),
    }
    table = Table("what", "callbacks, ms", "by hand, ms", "ratio", title="Overhead, medians of pairs, one thread")
    for name, figures in results.items():
        table.add_row(name, f"{figures['callbacks_ms']:.2f}", f"{figures['by_hand_ms']:.2f}", f"{figures['ratio']:.3f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
