"""How far `lightning-freeze suggest` stays behind the best of the grid, on examples that the grid did not see.

    python benchmarks/grid_regret.py [--tasks ...] [--searches 1] [--part 0.1]
    python benchmarks/grid_regret.py --report

For each task a search races on a sample of its own (seeds from 100 on), for a part of the CPU time of the task's grid.
What it suggests is then run as the grid runs: on the grid's seeds, and tested on the test set. Regret is the best mean
of the grid less the mean of what was suggested, over the same seeds. Rows go to grid_regret.jsonl.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grid
import torch
from grid import Row, Run, execute, read
from grid_report import Arm, arms_of
from grid_tasks import TASKS, Fold, Rows, Sample, sample

from lightning_freeze.suggest.budget import Budget
from lightning_freeze.suggest.record import Record
from lightning_freeze.suggest.search import Search
from lightning_freeze.suggest.tasks import task_of

RESULTS = grid.HERE / "grid_regret.jsonl"
FIRST = 100  # seed of the first search; the grid has 0, 1, 2
LR = 1e-3  # what the module is configured with; the search does not know what is good


def search(name: str, seed: int, seconds: float) -> Row:
    """Race on a sample of its own for so many CPU seconds."""
    task = TASKS[name]
    found = sample(task.rows("train"), task.per_class, seed)
    torch.manual_seed(seed)
    data = Fold(Sample(_joined(found), found.val), task.batch_size, seed)
    options = {"max_epochs": task.epochs, "accelerator": "cpu"}
    began = time.process_time()
    wanted = task_of(task.model(LR), data, options, monitor="val_accuracy", folds=5, seed=seed)
    wanted.clock = time.process_time
    race = Search(wanted, Budget(seconds, clock=time.process_time), Record(None, {})).go()
    choice = race.best.candidate
    told = [(entry.candidate.title, entry.candidate.rate, round(entry.interval.mean, 4)) for entry in race.entries]
    return {
        "task": name, "search": seed, "way": choice.way, "norm": choice.norm, "rate": choice.rate, "budget_s": seconds,
        "cpu_s": round(time.process_time() - began, 1), "entries": told, "remarks": race.remarks,
    }  # fmt: skip


def _joined(found: Sample) -> Rows:
    pairs = zip(found.train.inputs, found.val.inputs, strict=True)
    return Rows(tuple(torch.cat(pair) for pair in pairs), torch.cat([found.train.labels, found.val.labels]))


def tested(row: Row, seeds: Sequence[int], rows: Sequence[Row]) -> dict[int, float]:
    """The test metric of what was suggested, by seed of the grid; taken from the grid where it ran the same."""
    known = arms_of(rows, row["task"]).get((row["way"], row["norm"], row["rate"]), {})
    task, found = TASKS[row["task"]], {}
    for seed in seeds:
        if seed in known:
            found[seed] = known[seed]
        else:
            run = Run(row["task"], row["way"], row["norm"], row["rate"], seed)
            found[seed] = execute(run, sample(task.rows("train"), task.per_class, seed))["test"]
    return found


# ---- what it is compared with


def seeds_of(rows: Sequence[Row], task: str) -> list[int]:
    """The seeds that the grid has finished for a task: those with a row of every way."""
    ways: dict[int, set[tuple[str, str]]] = {}
    for row in rows:
        if row["task"] == task:
            ways.setdefault(row["seed"], set()).add((row["way"], row["norm"]))
    return sorted(seed for seed, found in ways.items() if len(found) == len(grid.arms(TASKS[task])))


def best_of(rows: Sequence[Row], task: str, seeds: Sequence[int]) -> tuple[Arm, float]:
    """The arm with the highest mean over these seeds, of those that ran on all of them."""
    means = _means(rows, task, seeds)
    best = max(means, key=means.__getitem__)
    return best, means[best]


def _means(rows: Sequence[Row], task: str, seeds: Sequence[int]) -> dict[Arm, float]:
    found = {arm: [by[seed] for seed in seeds if seed in by] for arm, by in arms_of(rows, task).items()}
    return {arm: statistics.fmean(values) for arm, values in found.items() if len(values) == len(seeds)}


def fixed(rows: Sequence[Row], tasks: Mapping[str, Sequence[int]], way: str, norm: str) -> dict[str, float]:
    """Regret by task of always the same: for each task at the rate that is best on average over the other tasks."""
    regrets: dict[str, dict[float, float]] = {}
    for task, seeds in tasks.items():
        best, mode = best_of(rows, task, seeds)[1], norm if TASKS[task].norm else ""
        means = _means(rows, task, seeds)
        regrets[task] = {arm[2]: best - mean for arm, mean in means.items() if arm[:2] == (way, mode)}
    found = {}
    for task, by_rate in regrets.items():
        others = [other for name, other in regrets.items() if name != task]
        scores = {
            rate: statistics.fmean(other.get(rate, 1.0) for other in others) if others else 0.0 for rate in by_rate
        }
        if scores:
            found[task] = by_rate[min(scores, key=scores.__getitem__)]
    return found


ALWAYS = {
    "always full, BatchNorm eval": ("all", "eval"), "always full, BatchNorm train": ("all", "train"),
    "always head": ("head", "eval"), "fastai's slices": ("slices", "eval"), "always decay": ("decay", "eval"),
    "always gradual": ("gradual", "eval"), "always LP-FT": ("LP-FT", "eval"),
}  # fmt: skip


def report(rows: Sequence[Row], results: Sequence[Row]) -> str:
    """Regret of the searches and of fixed choices, in points of accuracy."""
    tasks = {task: seeds for task in TASKS if (seeds := seeds_of(rows, task))}
    lines = ["| choice | " + " | ".join(tasks) + " | mean |", "| --- |" + " --- |" * (len(tasks) + 1)]
    mine = {task: [_regret(row, rows) for row in results if row["task"] == task] for task in tasks}
    lines.append(_line("suggest", {task: statistics.fmean(found) for task, found in mine.items() if found}, tasks))
    for title, (way, norm) in ALWAYS.items():
        lines.append(_line(title, fixed(rows, tasks, way, norm), tasks))
    return "\n".join([*lines, "", *_details(rows, results, tasks)])


def _regret(row: Row, rows: Sequence[Row]) -> float:
    found = {int(seed): value for seed, value in row["test"].items()}
    return best_of(rows, row["task"], list(found))[1] - statistics.fmean(found.values())


def _line(title: str, regrets: Mapping[str, float], tasks: Mapping[str, Any]) -> str:
    cells = [f"{100 * regrets[task]:.1f}" if task in regrets else "" for task in tasks]
    return f"| {title} | " + " | ".join([*cells, f"{100 * statistics.fmean(regrets.values()):.1f}"]) + " |"


def _details(rows: Sequence[Row], results: Sequence[Row], tasks: Mapping[str, Sequence[int]]) -> Iterator[str]:
    for task, seeds in tasks.items():
        arm, mean = best_of(rows, task, seeds)
        spent = sum(row["cpu_s"] for row in rows if row["task"] == task)
        yield f"- {task}: best of the grid on seeds {seeds}: {' '.join(map(str, arm))}, {mean:.3f}; {spent:.0f} CPU s"
        for row in (row for row in results if row["task"] == task):
            yield (
                f"  - search {row['search']}: {row['way']} {row['norm']} {row['rate']:g}, regret "
                f"{100 * _regret(row, rows):.1f} points, {row['cpu_s']:.0f} CPU s"
            )


def main(given: Sequence[str] | None = None) -> None:
    """Search, test what was suggested, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK")
    parser.add_argument("--searches", type=int, default=1, help="of each task, each on a sample of its own")
    parser.add_argument("--part", type=float, default=0.1, help="of the CPU time of the whole grid of the task")
    parser.add_argument("--grid", type=Path, default=grid.ROWS)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if not options.report:
        _search_all(options)
    print(report(read(options.grid), read(options.json)))


def _search_all(options: argparse.Namespace) -> None:
    for name in options.tasks or TASKS:
        for seed in range(FIRST, FIRST + options.searches):
            rows, results = read(options.grid), read(options.json)
            seeds = seeds_of(rows, name)
            if not seeds or any((row["task"], row["search"]) == (name, seed) for row in results):
                continue
            spent = [row["cpu_s"] for row in rows if row["task"] == name and row["seed"] == seeds[0]]
            # later seeds run two rates of each arm
            whole = sum(spent) + 2 * statistics.fmean(spent) * 2 * len(grid.arms(TASKS[name]))
            row = search(name, seed, options.part * whole)
            row["test"] = tested(row, seeds, rows)
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name}, search {seed}: {row['way']} {row['norm']} {row['rate']:g}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
