"""Test sets that differ from the training data, for transfer.py --shift, and what the arms did on them."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import fetch
import groceries
import sentences
import torch
from faults import FAULTS
from torch.utils.data import DataLoader

from lightning_freeze.suggest.intervals import paired

Run = dict[str, Any]  # task, regime, arm, lr, seed, accuracy, shifted
_TESTED = 300  # reviews of each label


@lru_cache
def shifted(task: str, quick: bool) -> dict[str, DataLoader[Any]]:
    """Test sets by name: photographs with a fault, or the beginnings of IMDB reviews for a model of Rotten Tomatoes."""
    if task == "text":
        return {"imdb": _reviews(8 if quick else _TESTED)}
    split = groceries.load("test")
    images, labels = (split.images[::40], split.labels[::40]) if quick else split
    found = {}
    for name, fault in FAULTS.items():
        faulty = (255 * fault(images.float() / 255)).round().to(torch.uint8)
        found[name] = DataLoader(groceries.Crops(groceries.Split(faulty, labels), augment=False), 64)
    return found


def _reviews(count: int) -> DataLoader[Any]:
    from transformers import AutoTokenizer

    with fetch.reviews_file().open(newline="") as file:
        rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file) if row["source"] != "rotten_tomatoes"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [rows[k] for label in (0, 1) for k in [k for k in order if rows[k][1] == label][:count]]
    tokens = AutoTokenizer.from_pretrained(fetch.minilm_folder())
    ids = tokens([text for text, _ in chosen], truncation=True, max_length=sentences.LENGTH)["input_ids"]
    examples = [(row, label) for row, (_, label) in zip(ids, chosen, strict=True)]
    return DataLoader(examples, 64, collate_fn=sentences.collate)  # type: ignore[arg-type]


def shift_report(found: Sequence[Run], reference: str = "full") -> str:
    """Markdown: accuracy as trained and under shift, and what an arm gains on full fine-tuning, with 95% intervals."""
    lines = ["| task | arm | seeds | test | shifted | against full, test | against full, shifted |", "|" + " --- |" * 7]
    for task, regime in dict.fromkeys((run["task"], run["regime"]) for run in found):
        here = [run for run in found if (run["task"], run["regime"]) == (task, regime)]
        full = [run for run in here if run["arm"] in (reference, f"{reference}, BatchNorm eval")]
        for arm in dict.fromkeys(run["arm"] for run in here):
            mine = [run for run in here if run["arm"] == arm]
            marks = [statistics.fmean(_mark(run, where) for run in mine) for where in (False, True)]
            gains = [_gain(mine, full, where) for where in (False, True)]
            cells = [f"{task}, {regime}", arm, str(len(mine)), *(f"{mark:.3f}" for mark in marks), *gains]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mark(run: Run, where: bool) -> float:
    return float(statistics.fmean(run["shifted"].values()) if where else run["accuracy"])


def _gain(mine: Sequence[Run], full: Sequence[Run], where: bool) -> str:
    mine_by, full_by = ({run["seed"]: _mark(run, where) for run in runs} for runs in (mine, full))
    if not mine_by.keys() & full_by.keys():
        return ""
    ahead = paired(mine_by, full_by)
    return f"{100 * ahead.mean:+.1f}" + (f" ± {100 * ahead.half:.1f}" if ahead.half < 1 else "") + " points"
