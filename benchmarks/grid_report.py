"""What grid.py found: per task the best mean with its interval, and how far each way stays behind it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from lightning_freeze.suggest.intervals import interval

Row = dict[str, Any]
Arm = tuple[str, str, float]  # way, mode of BatchNorm, rate


def arms_of(rows: Sequence[Row], task: str, metric: str = "test") -> dict[Arm, dict[int, float]]:
    """Way, mode and rate -> the metric by seed."""
    found: dict[Arm, dict[int, float]] = {}
    for row in rows:
        if row["task"] == task:
            found.setdefault((row["way"], row["norm"], row["rate"]), {})[row["seed"]] = row[metric]
    return found


def full(found: dict[Arm, dict[int, float]]) -> dict[Arm, dict[int, float]]:
    """The arms with as many seeds as any arm has."""
    most = max(map(len, found.values()))
    return {arm: values for arm, values in found.items() if len(values) == most}


def chosen(rows: Sequence[Row], task: str) -> dict[tuple[str, str], Arm]:
    """Of each way and mode, the rate with the highest mean over the validation folds."""
    best: dict[tuple[str, str], Arm] = {}
    losses = arms_of(rows, task, "val_loss")
    marks = full(arms_of(rows, task, "val_accuracy"))

    def merit(arm: Arm) -> tuple[float, float]:
        return statistics.fmean(marks[arm].values()), -statistics.fmean(losses[arm].values())

    for arm in sorted(marks, key=merit):
        best[arm[:2]] = arm
    return best


def report(rows: Sequence[Row]) -> str:
    """Markdown: a table per task, best way first."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        tests, picks = arms_of(rows, task), chosen(rows, task)
        others = [name for name in ("faults", "imdb") if name in next(row for row in rows if row["task"] == task)]
        seeds = max(map(len, tests.values()))
        top = max(full(tests).items(), key=lambda item: statistics.fmean(item[1].values()))
        best = interval(list(top[1].values()))
        head = ["way", "BatchNorm", "rate", "test accuracy", "regret", *others]
        lines = [" | ".join(head), " | ".join("---" for _ in head)]
        ranked = sorted(picks.values(), key=lambda arm: -statistics.fmean(tests[arm].values()))
        for arm in ranked:
            mark = interval(list(tests[arm].values()))
            further = [statistics.fmean(arms_of(rows, task, name)[arm].values()) for name in others]
            cells = [arm[0], arm[1] or "-", f"{arm[2]:g}", _shown(*mark), f"{100 * (best.mean - mark.mean):.1f} points"]
            lines.append(" | ".join([*cells, *(f"{value:.3f}" for value in further)]))
        title = f"{task}: {seeds} seed(s), best of all {' '.join(map(str, top[0]))} with {_shown(*best)}"
        parts.append("\n".join([title, "", *(f"| {line} |" for line in lines)]))
    return "\n\n".join(parts)


def _shown(mean: float, half: float) -> str:
    return f"{mean:.3f}" + (f" ± {half:.3f}" if half < 1 else "")
