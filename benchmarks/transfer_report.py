"""What transfer.py found: mean and spread, and what can be said of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import chain
from typing import Any

from rich.table import Table

REGIMES = ("few-shot", "all data", "quick")
Run = dict[str, Any]  # task, regime, arm, lr, seed, accuracy, cpu_s, trainable_share


def summary(found: Sequence[Run]) -> list[Run]:
    """One entry per task, regime and arm: mean and standard deviation over the seeds, the best arm first."""
    rows = []
    for task, regime, arm in dict.fromkeys((run["task"], run["regime"], run["arm"]) for run in found):
        mine = [run for run in found if (run["task"], run["regime"], run["arm"]) == (task, regime, arm)]
        accuracies = [run["accuracy"] for run in mine]
        rows.append(
            {
                "task": task,
                "regime": regime,
                "arm": arm,
                "lr": mine[0]["lr"],
                "seeds": sorted(run["seed"] for run in mine),
                "mean": statistics.mean(accuracies),
                "std": statistics.stdev(accuracies) if len(mine) > 1 else None,
                "cpu_s": statistics.mean(run["cpu_s"] for run in mine),
            }
        )
    return sorted(rows, key=lambda row: (row["task"], REGIMES.index(row["regime"]), -row["mean"]))


def said(rows: Sequence[Run], found: Sequence[Run]) -> list[str]:
    """What won in each task, and which arms are not clearly behind it."""
    return [_said(task, regime, rows, found) for task, regime in dict.fromkeys((r["task"], r["regime"]) for r in rows)]


def _said(task: str, regime: str, rows: Sequence[Run], found: Sequence[Run]) -> str:
    best, *others = [row for row in rows if (row["task"], row["regime"]) == (task, regime)]
    by_seed: dict[str, dict[int, float]] = {}
    for run in found:
        if (run["task"], run["regime"]) == (task, regime):
            by_seed.setdefault(run["arm"], {})[run["seed"]] = run["accuracy"]
    level = [row["arm"] for row in others if not clearly(by_seed[best["arm"]], by_seed[row["arm"]])]
    beside = f"not clearly behind it: {'; '.join(level)}" if level else "all others are clearly behind it"
    few = "" if len(best["seeds"]) > 2 else f" With {len(best['seeds'])} seed(s) there is no spread to judge by."
    return f"{task}, {regime}: the highest mean is that of {best['arm']} ({best['mean']:.3f}); {beside}.{few}"


def clearly(one: dict[int, float], other: dict[int, float]) -> bool:
    """Whether one is ahead by more than two standard errors of the differences seed by seed, of at least three."""
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    if len(differences) < 3:
        return False
    return statistics.mean(differences) > 2 * statistics.stdev(differences) / len(differences) ** 0.5


HEADINGS = ("arm", "lr", "accuracy", "seeds", "CPU s")


def _accuracy(row: Run) -> str:
    return f"{row['mean']:.3f}" + ("" if row["std"] is None else f" ± {row['std']:.3f}")


def _percent(row: Run) -> str:
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
    return f"{100 * row['mean']:.1f}{spread}%"


def tables(rows: Sequence[Run]) -> list[Table]:
    """The summary for the screen, a table per task and training data, and a line per arm."""
    shown = []
    for task, regime in dict.fromkeys((row["task"], row["regime"]) for row in rows):
        one = Table(title=f"{task}, {regime}: test accuracy, mean ± standard deviation", box=None)
        for heading in HEADINGS:
            one.add_column(heading, no_wrap=True)
        for row in rows:
            if (row["task"], row["regime"]) == (task, regime):
                seeds, seconds = str(len(row["seeds"])), f"{row['cpu_s']:.0f}"
                one.add_row(row["arm"], f"{row['lr']:g}", _accuracy(row), seeds, seconds)
        shown.append(one)
    return shown


def markdown(rows: Sequence[Run], sentences: Sequence[str]) -> str:
    """The same for evidence.md, with what is said about it: a line per arm, columns for each amount of data."""
    regimes = [regime for regime in REGIMES if any(row["regime"] == regime for row in rows)]
    by_arm: dict[tuple[str, str, float], dict[str, Run]] = {}
    for row in rows:
        by_arm.setdefault((row["task"], row["arm"], row["lr"]), {})[row["regime"]] = row
    lines = [["task", "arm", "lr", *(f"{what}, {regime}" for regime in regimes for what in ("accuracy", "CPU time"))]]
    lines.append(["---"] * len(lines[0]))
    for (task, arm, lr), found in by_arm.items():
        pairs = ((_percent(row), f"{row['cpu_s']:.0f} s") if (row := found.get(one)) else ("", "") for one in regimes)
        lines.append([task, arm, f"{lr:g}", *chain.from_iterable(pairs)])
    return "\n".join(
        [*("| " + " | ".join(line) + " |" for line in lines), "", *(f"- {line}" for line in sentences), ""]
    )
