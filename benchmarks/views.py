"""How many augmented versions of each sample are enough, and what they save: FeatureCache(views=K) on photographs.

    python benchmarks/views.py [--seeds 0 1 2 3 4] [--views 1 2 4 8 0] [--json FILE] [--readme]

ImageNet's MobileNetV2 on photographs of 14 kinds of groceries, 10 per kind, random crops and flips, 16 epochs. The head
trains, or the head and the last two blocks. 0 stands for no limit, without a cache: what a loader gives without
FeatureCache. Rates were set before the first run; nothing is chosen on the test split. views.json is written after each
run, and a second call goes on where the first one stopped. CPU seconds are those of one thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchvision

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

import groceries  # noqa: E402
import readme  # noqa: E402

import lightning_freeze  # noqa: E402
from lightning_freeze import BatchNormEval, FeatureCache, FreezeLayers  # noqa: E402

EPOCHS, PER_CLASS = 16, 10
PAGE = HERE.parent / "examples" / "docs" / "savings.md"
ARMS: dict[str, tuple[float, list[str]]] = {
    "head": (1e-2, ["model.features"]),
    "last two blocks and head": (1e-3, ["model.features.?", "model.features.1[0-6]"]),
}
_T = {3: 4.303, 4: 3.182, 5: 2.776}  # quantile 0.975 of Student's t, for as many seeds


def run(arm: str, views: int, seed: int) -> dict[str, float]:
    """Train with one seed, and test on the whole test split."""
    L.seed_everything(seed, verbose=False)
    lr, patterns = ARMS[arm]
    model, data = groceries.GroceryNet(lr), groceries.Groceries(PER_CLASS, seed=seed)
    cache = [FeatureCache(views=views)] if views else []
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[*cache, FreezeLayers(patterns), BatchNormEval()],
        limit_val_batches=0,
        **quiet,
    )
    with redirect_stdout(StringIO()):
        began = time.process_time()
        trainer.fit(model, data)
        seconds = time.process_time() - began
        accuracy = trainer.test(model, data, verbose=False)[0]["test_accuracy"]
    return {"accuracy": accuracy, "cpu_s": seconds}


def versions() -> dict[str, str]:
    """What the figures were measured with."""
    parts = (lightning_freeze, torch, torchvision, L)
    return {"python": platform.python_version()} | {part.__name__: str(part.__version__) for part in parts}


def compared(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each arm and K: means, and the difference to no limit, seed by seed, with its 95% interval."""
    rows = []
    for arm, views in dict.fromkeys((one["arm"], one["views"]) for one in runs):
        free = {one["seed"]: one for one in runs if one["arm"] == arm and not one["views"]}
        mine = {one["seed"]: one for one in runs if (one["arm"], one["views"]) == (arm, views) and one["seed"] in free}
        gaps = [mine[seed]["accuracy"] - free[seed]["accuracy"] for seed in mine]
        half = _T.get(len(gaps), 12.7) * statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
        found = {name: statistics.mean(one[name] for one in mine.values()) for name in ("accuracy", "cpu_s")}
        rows.append(
            {"arm": arm, "views": views, "seeds": len(gaps), **found, "gap": statistics.mean(gaps), "half": half}
        )
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the page."""
    lines = [
        "| trains | views | test accuracy | against no limit, 95% interval | CPU seconds |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        gap = f"{100 * row['gap']:+.1f} ± {100 * row['half']:.1f} points" if row["views"] else ""
        views = row["views"] or "no limit, no cache"
        lines.append(f"| {row['arm']} | {views} | {100 * row['accuracy']:.1f}% | {gap} | {row['cpu_s']:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--views", nargs="+", type=int, default=[1, 2, 4, 8, 0])
    parser.add_argument("--json", type=Path, default=HERE / "views.json")
    parser.add_argument("--readme", action="store_true", help="write the table of the page, running nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    runs = json.loads(options.json.read_text())["runs"] if options.json.exists() else []
    if options.readme:
        readme.write("views", markdown(compared(runs)), PAGE)
        return
    for split in ("train", "test"):
        groceries.load(split)
    done = {(one["arm"], one["views"], one["seed"]) for one in runs}
    wanted = [(arm, views, seed) for seed in options.seeds for arm in ARMS for views in options.views]
    for arm, views, seed in wanted:
        if (arm, views, seed) not in done:
            runs.append({"arm": arm, "views": views, "seed": seed, **run(arm, views, seed)})
            content = {"command": "python benchmarks/views.py", "versions": versions(), "epochs": EPOCHS, "runs": runs}
            options.json.write_text(json.dumps(content, indent=1) + "\n")
            print(runs[-1], file=sys.stderr, flush=True)
    print(markdown(compared(runs)))


if __name__ == "__main__":
    main()
