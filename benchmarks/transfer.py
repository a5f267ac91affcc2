"""Which way to fine-tune is the most accurate, and at which cost: head only to LP-FT, two real tasks, several seeds.

    python benchmarks/transfer.py [--task images text] [--seeds 0 1 2 3 4] [--arms ...] [--full] [--shift] [--quick]

Images: ImageNet's MobileNetV2 on photographs of 14 kinds of groceries, 10 per kind. Text: MiniLM on 512 Rotten
Tomatoes sentences. With --full: on all of them. Settings are fixed beforehand; nothing is chosen on the test split.
With --shift: tested also on photographs with noise, blur or little contrast, and on reviews of another source.
The JSON is written after each run, and a second call goes on where the first one stopped. CPU seconds are of one
thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

import groceries  # noqa: E402
import readme  # noqa: E402
import sentences  # noqa: E402
from demo import FULL_LR, HEAD_LR, LR, STAGES, Record  # noqa: E402
from demo_report import Result  # noqa: E402
from transfer_report import markdown, said, summary, tables  # noqa: E402
from transfer_shift import shift_report, shifted  # noqa: E402

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR  # noqa: E402


@dataclass(frozen=True)
class Arm:
    """A way to fine-tune; `norm` is the mode of BatchNorm, "" for a model without it."""

    name: str
    norm: str
    lr: float
    callbacks: Callable[[], list[Any]] = list

    @property
    def title(self) -> str:
        return f"{self.name}, BatchNorm {self.norm}" if self.norm else self.name


SENTENCE_STAGES: list[Any] = [
    "head",
    "encoder.encoder.layer.[45]",
    "encoder.encoder.layer.[23]",
    ["encoder.encoder.layer.[01]", "encoder.embeddings"],
]
SENTENCE_LAYERS = ["head", *[f"encoder.encoder.layer.{k}" for k in range(5, -1, -1)], "encoder.embeddings"]


def image_arms(norm: str) -> Iterator[Arm]:
    """12 epochs of 18 steps; rates differ with the mode of BatchNorm where the best ones do."""
    held = norm == "eval"
    still: list[Any] = [BatchNormEval()] if held else []
    rate = 2 * LR if held else FULL_LR
    full = LR if held else FULL_LR  # the best on seeds 0 and 1 for the demo

    def gradual() -> list[Any]:
        return [GradualUnfreeze(STAGES, warmup_steps=18, eval_frozen=held), *still]

    def lp_ft() -> list[Any]:
        stages: list[Any] = ["model.classifier", "model.features"]
        body = LayerwiseLR(multipliers={"model.features": rate / HEAD_LR})
        return [GradualUnfreeze(stages, at=[0, 4], warmup_steps=18, eval_frozen=held), body, *still]

    yield Arm("head only", norm, HEAD_LR, lambda: [FreezeLayers("model.features", eval_frozen=held)])
    yield Arm("full", norm, full, lambda: still)
    if held:
        yield Arm("full, twice the rate", norm, 2 * full, lambda: still)
    yield Arm("full + decay", norm, 1e-3, lambda: [LayerwiseLR(0.5, stages=STAGES), *still])
    yield Arm("gradual", norm, rate, gradual)
    yield Arm("gradual + decay", norm, 1e-3, lambda: [*gradual(), LayerwiseLR(0.5)])
    yield Arm("LP-FT", norm, HEAD_LR, lp_ft)


def text_arms() -> Iterator[Arm]:
    """3 epochs of 32 steps, or one of all sentences; the model has LayerNorm, so there is no question of its mode."""

    def gradual() -> list[Any]:
        return [GradualUnfreeze(SENTENCE_STAGES, at=[0.0, 0.2, 0.4, 0.6], warmup_steps=16)]

    def decay() -> list[Any]:
        return [LayerwiseLR(0.7, stages=SENTENCE_LAYERS)]

    def lp_ft() -> list[Any]:
        body = LayerwiseLR(multipliers={"encoder": 5e-5 / HEAD_LR})
        return [GradualUnfreeze(["head", "encoder"], at=[0.0, 1 / 3], warmup_steps=16), body]

    yield Arm("head only", "", HEAD_LR, lambda: [FreezeLayers("encoder")])
    yield Arm("full", "", 5e-5)
    yield Arm("full + decay", "", 1e-3, decay)
    yield Arm("gradual", "", 2e-4, gradual)
    yield Arm("gradual + decay", "", 1e-3, lambda: [*gradual(), *decay()])
    yield Arm("LP-FT", "", HEAD_LR, lp_ft)


@dataclass(frozen=True)
class Task:
    """What the arms are run on."""

    model: Callable[[float], L.LightningModule]
    data: Callable[[int, bool, bool], L.LightningDataModule]  # of the seed, --full and --quick
    arms: list[Arm]
    epochs: int
    full_epochs: int


def _images(seed: int, full: bool, quick: bool) -> L.LightningDataModule:
    return groceries.Groceries(per_class=1000 if full else 1 if quick else 10, seed=seed)


def _text(seed: int, full: bool, quick: bool) -> L.LightningDataModule:
    return sentences.Sentences(None if full else 16 if quick else 512, seed, tested=64 if quick else None)


TASKS = {
    "images": Task(groceries.GroceryNet, _images, [*image_arms("eval"), *image_arms("train")], 12, full_epochs=12),
    "text": Task(sentences.SentenceNet, _text, [*text_arms()], 3, full_epochs=1),
}


def run(
    task: Task, arm: Arm, data: L.LightningDataModule, epochs: int, seed: int, sets: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train one arm with one seed, and test it on the whole test split, and on further sets."""
    L.seed_everything(seed, verbose=False)
    model = task.model(arm.lr)
    result = Result(arm.title, arm.lr, sum(parameter.numel() for parameter in model.parameters()))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*arm.callbacks(), Record(result, lambda: None)],
        limit_val_batches=0,  # nothing is chosen during the run
        **quiet,  # type: ignore[arg-type]
    )
    with redirect_stdout(StringIO()):
        trainer.fit(model, data)
        accuracy = trainer.test(model, data, verbose=False)[0]["test_accuracy"]
        also = {
            name: trainer.test(model, rows, verbose=False)[0]["test_accuracy"] for name, rows in (sets or {}).items()
        }
    found = {"accuracy": accuracy, "cpu_s": result.seconds, "trainable_share": result.share}
    return found | ({"shifted": also} if sets else {})


def run_missing(options: argparse.Namespace, found: list[dict[str, Any]], save: Callable[[], None]) -> None:
    """All runs that are asked for and not there yet, seed by seed, so that the arms always have the same seeds."""
    regime = "all data" if options.full else "quick" if options.quick else "few-shot"
    done = {(entry["task"], entry["regime"], entry["arm"], entry["seed"]) for entry in found}
    for name in options.task:
        task = TASKS[name]
        for seed in options.seeds:
            data = task.data(seed, options.full, options.quick)
            for arm in (arm for arm in task.arms if options.arms is None or arm.title in options.arms):
                if (name, regime, arm.title, seed) in done:
                    continue
                epochs = task.full_epochs if options.full else 1 if options.quick else task.epochs
                shift = {"sets": shifted(name, options.quick)} if options.shift else {}
                figures = run(task, arm, data, epochs, seed, **shift)
                found.append({"task": name, "regime": regime, "arm": arm.title, "lr": arm.lr, "seed": seed, **figures})
                save()
                print(f"{name}, {arm.title}, seed {seed}: {figures['accuracy']:.3f}", file=sys.stderr, flush=True)


SETTINGS = {
    "images": "MobileNetV2 IMAGENET1K_V1, Grocery Store Dataset, 14 classes, 10 photographs each (all data: 675), "
    "661 test photographs; 12 epochs, batch 8, 96 px crops, AdamW, cosine per step",
    "text": "all-MiniLM-L6-v2, Rotten Tomatoes sentences, 512 (all data: all but the test split), 1066 test sentences; "
    "3 epochs (all data: 1), batch 16, at most 48 tokens, AdamW, cosine per step",
    "rates": "those of the demo (the best on its seeds 0 and 1) where it has the arm, else set before the first run "
    "and not searched for; the same for all seeds, which choose data, head, order and augmentation",
    "afterwards": "the arm 'full, BatchNorm eval' at the rate of the demo was added when the first figures were there: "
    "at the rate of the gradual arm, now 'full, twice the rate', it had collapsed for some seeds",
    "time": "CPU seconds of training on one thread; what else ran on the machine does not count, but slows caches",
}


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    titles = [arm.title for task in TASKS.values() for arm in task.arms]
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--arms", nargs="+", choices=titles, help="some of the arms only", metavar="ARM")
    parser.add_argument("--full", action="store_true", help="train on all training data, not on a few examples")
    parser.add_argument("--shift", action="store_true", help="test on shifted data too; writes transfer_shift.json")
    parser.add_argument("--quick", action="store_true", help="one epoch on next to nothing; writes only with --json")
    parser.add_argument("--json", type=Path, help="default: transfer.json beside this file")
    parser.add_argument(
        "--readme", action="store_true", help="write the table of the page from the JSON, running nothing"
    )
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run what is missing, print the table and what won, and write both."""
    options = arguments(given)
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    usual = HERE / ("transfer_shift.json" if options.shift else "transfer.json")
    path = options.json or (None if options.quick else usual)
    found = json.loads(path.read_text())["runs"] if path and path.exists() else []

    def save() -> None:
        rows = summary(found)
        content = {"settings": SETTINGS, "summary": rows, "said": said(rows, found), "runs": found}
        if path:
            path.write_text(json.dumps(content, indent=1) + "\n")

    rows = summary(found)
    if options.readme:
        readme.write("transfer", markdown(rows, said(rows, found)))
        return rows
    run_missing(options, found, save)
    save()
    rows = summary(found)
    if options.shift:
        print(shift_report(found))
    Console(highlight=False).print(*tables(rows), *said(rows, found), sep="\n")
    return rows


if __name__ == "__main__":
    main()
