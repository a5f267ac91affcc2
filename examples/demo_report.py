"""What the demo shows: a table, sentences derived from the numbers, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass
class Result:
    """What the run of one arm showed."""

    name: str
    lr: float
    parameters: int
    accuracy: float = 0.0  # of the test split, 0 to 1
    seconds: float = 0.0  # of training, of one CPU
    wall_seconds: float = 0.0  # of training, by the clock
    trainable: list[int] = field(default_factory=list)  # parameters, at each optimizer step
    times: list[float] = field(default_factory=list)  # CPU seconds since the start, after each optimizer step

    @property
    def share(self) -> float:
        """Trainable parameters as a share of all, averaged over the optimizer steps."""
        return sum(self.trainable) / len(self.trainable) / self.parameters


def table(results: Sequence[Result]) -> Table:
    """One row per arm."""
    rows = Table(title="Test accuracy after few-shot fine-tuning", title_justify="left")
    rows.add_column("arm", no_wrap=True)
    for heading in ("lr", "accuracy", "CPU seconds", "trainable (mean)"):
        rows.add_column(heading, justify="right")
    for result in results:
        rows.add_row(
            result.name, f"{result.lr:g}", f"{result.accuracy:.3f}", f"{result.seconds:.1f}", f"{result.share:.1%}"
        )
    return rows


def noise(accuracy: float, photographs: int) -> float:
    """The largest difference of two accuracies that chance alone explains (95%), on so many photographs."""
    return 1.96 * sqrt(2 * accuracy * (1 - accuracy) / photographs)


def findings(results: Mapping[str, Result], pairs: Sequence[tuple[str, str]], photographs: int) -> list[str]:
    """One sentence per pair of arms, the first compared with the second, and how far to trust them."""
    caution = f"One seed, {photographs} test photographs: 'no clear difference' is one that chance explains (95%)."
    return [*(_compare(results[one], results[other], photographs) for one, other in pairs), caution]


def _compare(one: Result, other: Result, photographs: int) -> str:
    points = 100 * (one.accuracy - other.accuracy)
    doubt = noise((one.accuracy + other.accuracy) / 2, photographs)
    verdict = "no clear difference" if abs(points) < 100 * doubt else f"{abs(points):.0f} points {_sign(points)}"
    return (
        f"{one.name} (lr {one.lr:g}) against {other.name} (lr {other.lr:g}): {verdict} "
        f"({one.accuracy:.3f} and {other.accuracy:.3f}), {one.seconds / other.seconds:.2f} of the CPU time."
    )


def _sign(points: float) -> str:
    return "higher" if points > 0 else "lower"


def save_json(results: Sequence[Result], settings: Mapping[str, Any], said: Sequence[str], path: Path) -> None:
    """Settings, every result and the sentences."""
    arms = [{**asdict(result), "mean_trainable_share": result.share} for result in results]
    path.write_text(json.dumps({"settings": dict(settings), "arms": arms, "findings": list(said)}, indent=1) + "\n")


def save_picture(results: Sequence[Result], path: Path) -> None:
    """A row per arm: its accuracy, and its trainable parameters over its training time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.75 * len(results)), layout="constrained")
    accuracy, timeline = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    for row, result in enumerate(results):
        _accuracy(accuracy, row, result)
        _timeline(timeline, row, result)
    accuracy.set(title="test accuracy", xlim=(0, 1))
    accuracy.set_yticks(range(len(results)), [f"{result.name}\nlr {result.lr:g}" for result in results])
    accuracy.set_ylim(len(results) - 0.5, -0.6)
    timeline.set(title="trainable parameters (full height: all) over training time", xlabel="CPU seconds")
    timeline.set_xlim(0, 1.45 * max(result.seconds for result in results))  # room for the labels
    figure.savefig(path, dpi=120)


def _accuracy(axes: Any, row: int, result: Result) -> None:
    axes.barh(row, result.accuracy, height=0.7, color=f"C{row}")
    axes.text(result.accuracy + 0.02, row, f"{result.accuracy:.3f}", va="center")
    axes.spines[["top", "right"]].set_visible(False)


def _timeline(axes: Any, row: int, result: Result) -> None:
    times = [0.0, *result.times]
    heights = [0.7 * trainable / result.parameters for trainable in result.trainable]
    bottom = row + 0.35
    axes.plot([0, result.seconds], [bottom, bottom], color=f"C{row}")
    axes.fill_between(times, bottom, [bottom - h for h in [*heights[:1], *heights]], step="pre", color=f"C{row}", lw=0)
    axes.text(result.seconds, row, f"  {result.seconds:.1f} s, mean {result.share:.0%}", va="center")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
