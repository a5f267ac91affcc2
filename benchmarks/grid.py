"""Every way to fine-tune, at several rates, on several tasks: the yardstick for `lightning-freeze suggest`.

    python benchmarks/grid.py --plan               # what is missing, and the CPU time that it will take
    python benchmarks/grid.py [--minutes 120]      # run what is missing; a second call goes on where the first stopped
    python benchmarks/grid.py --report             # the tables, from the rows that are there

One row of grid.jsonl is one run: a seed chooses the training examples, the fold of them that is held out for
validation, the head and the order. A rate is chosen on the validation folds; the test set judges and chooses nothing.
Seed 0 runs all rates of a way; later seeds run the best two of it, by validation. Run with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

import lightning as L  # noqa: E402
import torch  # noqa: E402
from grid_report import report  # noqa: E402
from grid_tasks import TASKS, Sample, Task, loader, sample  # noqa: E402

from lightning_freeze import discover_stages  # noqa: E402
from lightning_freeze.suggest.ways import WAYS, callbacks_of, make, spec  # noqa: E402

ROWS = HERE / "grid.jsonl"
STAGES = 6
Row = dict[str, Any]  # the fields of a Run, val_accuracy, val_loss, test, the other test sets, cpu_s, versions
TRAIN_MODE = ("head", "last half", "all", "decay", "gradual")  # also run with BatchNorm in train mode
TOP, BODY = (1e-3, 3e-3, 1e-2, 3e-2), (1e-4, 3e-4, 1e-3, 3e-3)  # rates of ways that a head leads, and of others
LOWEST, HIGHEST = 1e-5, 0.3  # where an extension ends
FROZEN = ("head", "last stage", "last half")  # from the input on, so that FeatureCache gives the same bits


@dataclass(frozen=True)
class Run:
    """One run of the grid."""

    task: str
    way: str
    norm: str
    rate: float
    seed: int


def arms(task: Task) -> list[tuple[str, str]]:
    """The ways of a task, with the mode of BatchNorm ("" for a model without it)."""
    if not task.norm:
        return [(way, "") for way in WAYS]
    return [(way, "eval") for way in WAYS] + [(way, "train") for way in TRAIN_MODE]


def missing(rows: Sequence[Row], tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    """What is to be run, most useful first: a seed of all tasks before the next seed."""
    done = {_key(row) for row in rows}
    for seed in seeds:
        for name in tasks:
            for way, norm in arms(TASKS[name]):
                for rate in rates(rows, name, way, norm, seed):
                    run = Run(name, way, norm, rate, seed)
                    if _key(asdict(run)) not in done:
                        yield run


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "way", "norm", "rate", "seed"))


def rates(rows: Sequence[Row], task: str, way: str, norm: str, seed: int) -> list[float]:
    """Seed 0: four rates a factor of 3 apart, and on while the best is at an edge. Later seeds: the best two.

    What is above a rate that ended at chance is left out.
    """
    planned = list(TOP if WAYS[way].top else BODY)
    first = [row for row in rows if _key(row)[:3] == (task, way, norm) and row["seed"] == 0]
    ranked = [row["rate"] for row in sorted(first, key=_merit)]
    if seed:
        return ranked[:2] or planned[1:3]
    chance = 1.2 / TASKS[task].classes
    broken = min((row["rate"] for row in first if row["val_accuracy"] <= chance), default=2 * HIGHEST)
    planned = [rate for rate in planned if rate <= broken]
    if ranked and set(planned) <= set(ranked):
        ends = {min(ranked): _next(min(ranked), down=True), max(ranked): _next(max(ranked), down=False)}
        further = ends.get(ranked[0])
        planned += [further] if further and LOWEST <= further <= HIGHEST and further < broken else []
    return planned


def _merit(row: Row) -> tuple[float, float]:
    return -row["val_accuracy"], row["val_loss"]


def _next(rate: float, down: bool) -> float:
    """The neighbour of a rate on the scale 1, 3, 10, 30, ..."""
    one = f"{rate:.0e}".startswith("1")
    return float(f"{rate / (10 / 3 if one else 3) if down else rate * (3 if one else 10 / 3):.0e}")


# ---- running


def execute(run: Run, found: Sample) -> Row:
    """Train, validate on the fold, test on everything there is to test on."""
    task = TASKS[run.task]
    torch.manual_seed(run.seed)
    module = task.model(run.rate)
    stages = discover_stages(module, max_stages=STAGES)
    specs = callbacks_of(run.way, stages, run.norm)
    if run.way in FROZEN and run.norm != "train":
        specs.append(spec("FeatureCache", verbose=False))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_epochs=task.epochs, accelerator="cpu", limit_val_batches=0, callbacks=make(specs), **quiet)  # type: ignore[arg-type]
    began = time.process_time()
    with redirect_stdout(StringIO()):
        trainer.fit(module, _loader(task, found, run.seed))
        seconds = time.process_time() - began
        judge = L.Trainer(accelerator="cpu", **quiet)  # type: ignore[arg-type]
        sets = {"val": found.val, "test": task.rows("test"), **{name: rows() for name, rows in task.others.items()}}
        marks = {name: judge.validate(module, loader(rows), verbose=False)[0] for name, rows in sets.items()}
    tests = {name: round(mark["val_accuracy"], 5) for name, mark in marks.items() if name != "val"}
    val = {name: round(marks["val"][name], 5) for name in ("val_accuracy", "val_loss")}
    versions = {"torch": torch.__version__, "lightning": L.__version__}
    return asdict(run) | val | tests | {"cpu_s": round(seconds, 2), "versions": versions}


def _loader(task: Task, found: Sample, seed: int) -> Any:
    from grid_tasks import Fold

    return Fold(found, task.batch_size, seed)


def go_on(options: argparse.Namespace) -> None:
    """Run what is missing until the time is up; the plan is made anew after each run, for rates depend on results."""
    end = time.process_time() + 60 * options.minutes
    while time.process_time() < end:
        run = next(missing(read(options.json), options.tasks, options.seeds), None)
        if run is None:
            return
        task = TASKS[run.task]
        row = execute(run, sample(task.rows("train"), task.per_class, run.seed))
        with options.json.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{run}: {row['val_accuracy']:.3f} {row['test']:.3f} {row['cpu_s']:.0f} s", file=sys.stderr, flush=True)


def read(path: Path) -> list[Row]:
    """The rows that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def plan(options: argparse.Namespace) -> str:
    """How much is done and missing, and the CPU time for it: means of the same way, else of the same task."""
    rows, lines, total = read(options.json), [], 0.0
    todo = list(missing(rows, options.tasks, options.seeds))
    for name in options.tasks:
        mine = [run for run in todo if run.task == name]
        expected = sum(_seconds(rows, run) for run in mine)
        total += expected
        done = sum(row["task"] == name for row in rows)
        lines.append(f"{name}: {done} runs done, {len(mine)} missing, about {expected / 60:.0f} CPU minutes")
    return "\n".join([*lines, f"In all about {total / 3600:.1f} CPU hours; seed 0 may add rates beyond an edge."])


def _seconds(rows: Sequence[Row], run: Run) -> float:
    same = [row for row in rows if row["task"] == run.task]
    alike = [row["cpu_s"] for row in same if row["way"] == run.way] or [row["cpu_s"] for row in same]
    return sum(alike) / len(alike) + 5 if alike else TASKS[run.task].seconds  # 5 s: building and testing


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=120.0, help="CPU minutes at most")
    parser.add_argument("--json", type=Path, default=ROWS, help="default: grid.jsonl beside this file")
    parser.add_argument("--plan", action="store_true", help="print what is missing and end")
    parser.add_argument("--report", action="store_true", help="print what was found and end")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Plan, run or report."""
    options = arguments(given)
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if not options.report:
        print(plan(options))
    if not (options.plan or options.report):
        go_on(options)
    if not options.plan:
        print(report(read(options.json)))


if __name__ == "__main__":
    main()
