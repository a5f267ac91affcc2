"""Fine-tune ImageNet's MobileNetV2 on ten photographs per class, with and without freezing, and compare."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import demo_report as report
import lightning as L
import torch
from demo_report import Result
from groceries import Groceries, GroceryNet, load
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR, Stage

# The best rates of the arms without gradual unfreezing, found on seeds 0 and 1; the demo runs another seed.
HEAD_LR = 1e-2
FULL_LR = 1e-3  # BatchNorm in train mode
LR = 1.5e-4  # BatchNorm in eval mode
STAGES: list[str | list[str] | Stage] = [
    "model.classifier",
    "model.features.1[78]",
    "model.features.1[56]",
    "model.features.1[34]",
    "model.features.1[0-2]",
    "model.features.?",
]


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune: a name, a learning rate and the callbacks that make the difference."""

    name: str
    lr: float
    callbacks: Callable[[], list[Any]] = list
    shown: bool = False  # print the tables and lines of its callbacks


def head(eval_frozen: bool) -> list[Any]:
    """Only the new head trains; Lightning leaves the BatchNorm below it in train mode."""
    return [FreezeLayers("model.features", eval_frozen=eval_frozen)]


def gradual() -> list[Any]:
    """A stage more per epoch, each at half the rate of the one above it, BatchNorm in eval mode."""
    return [
        GradualUnfreeze(STAGES, every_n_epochs=1, warmup_steps=18),
        LayerwiseLR(0.5),
        BatchNormEval(),
    ]


ARMS = [
    Arm("head only, BatchNorm train", HEAD_LR, lambda: head(eval_frozen=False)),
    Arm("head only, BatchNorm eval", HEAD_LR, lambda: head(eval_frozen=True)),
    Arm("full, BatchNorm train", FULL_LR),
    Arm("full, BatchNorm eval", LR, lambda: [BatchNormEval()]),
    Arm("gradual", LR, gradual, shown=True),
    Arm("full, BatchNorm eval, 3x lr", 3 * LR, lambda: [BatchNormEval()]),
    Arm("gradual, 3x lr", 3 * LR, gradual),
]
PAIRS = [
    ("head only, BatchNorm eval", "head only, BatchNorm train"),
    ("gradual", "full, BatchNorm eval"),
    ("gradual, 3x lr", "full, BatchNorm eval, 3x lr"),
    ("full, BatchNorm eval, 3x lr", "full, BatchNorm eval"),
    ("gradual, 3x lr", "gradual"),
    ("gradual, 3x lr", "full, BatchNorm train"),
    ("gradual, 3x lr", "head only, BatchNorm eval"),
]


class Record(L.Callback):
    """Writes time and trainable parameters of each step into a result, and moves the progress bar."""

    def __init__(self, result: Result, advance: Callable[[], None]) -> None:
        self.result, self.advance = result, advance

    def on_train_start(self, *args: Any) -> None:
        self.begin = time.process_time()  # other programs on the machine do not count
        self.wall_begin = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.result.times.append(time.process_time() - self.begin)
        self.result.trainable.append(sum(p.numel() for p in pl_module.parameters() if p.requires_grad))
        self.advance()

    def on_train_end(self, *args: Any) -> None:
        self.result.seconds = time.process_time() - self.begin
        self.result.wall_seconds = time.perf_counter() - self.wall_begin


def run(arm: Arm, data: Groceries, epochs: int, seed: int, advance: Callable[[], None]) -> Result:
    """Train one arm and test it on the whole test split."""
    L.seed_everything(seed, verbose=False)
    model = GroceryNet(lr=arm.lr)
    result = Result(arm.name, arm.lr, sum(parameter.numel() for parameter in model.parameters()))
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*arm.callbacks(), Record(result, advance)],
        limit_val_batches=0,  # nothing is chosen during the run
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with nullcontext() if arm.shown else redirect_stdout(StringIO()):
        trainer.fit(model, data)
    result.accuracy = trainer.test(model, data, verbose=False)[0]["test_accuracy"]
    return result


def run_all(arms: Sequence[Arm], data: Groceries, epochs: int, seed: int, console: Console) -> list[Result]:
    """All arms in turn, under one progress bar that counts training steps."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description:27}"), *columns, console=console) as progress:
        bar = progress.add_task("", total=len(arms) * epochs * len(data.train_dataloader()))
        results = []
        for arm in arms:
            progress.update(bar, description=arm.name)
            results.append(run(arm, data, epochs, seed, lambda: progress.advance(bar)))
    return results


def quiet() -> None:
    """Leave the screen to the progress bar."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")  # the data is in memory
    warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated")  # within Lightning


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for demo.json and demo.png")
    parser.add_argument("--seed", type=int, default=2, help="of the photographs, the head and the augmentation")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--per-class", type=int, default=10, help="photographs of each class to train on")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> list[Result]:
    """Run the arms, print the comparison and save it as JSON and as a picture."""
    options = arguments(given)
    quiet()
    torch.set_num_threads(1)
    console = Console(file=sys.stdout, highlight=False)
    console.print("Fetching weights and photographs (once) and decoding them ...")
    photographs = len(load("test").labels)
    data = Groceries(per_class=options.per_class, seed=options.seed)
    results = run_all(ARMS, data, options.epochs, options.seed, console)
    said = report.findings({result.name: result for result in results}, PAIRS, photographs)
    console.print(report.table(results), *(f"- {sentence}" for sentence in said), sep="\n")
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {"seed": options.seed, "epochs": options.epochs, "per_class": options.per_class}
    report.save_json(results, settings | {"test_photographs": photographs}, said, options.output / "demo.json")
    report.save_picture(results, options.output / "demo.png")
    console.print(f"Written: {options.output / 'demo.json'} and {options.output / 'demo.png'}")
    return results


if __name__ == "__main__":
    main()
