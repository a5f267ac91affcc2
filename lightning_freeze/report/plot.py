"""The picture of a schedule: stages over time, coloured by rate, with unfreezings marked and a metric below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_freeze.errors import PlanError
from lightning_freeze.report.timeline import Timeline

FORMATS = (".png", ".svg", ".pdf")
_FROZEN = "#eceff1"
_TALLEST = 18.0  # inches for all stages together


def check_path(path: str | Path, owner: str) -> None:
    """Refuse a path that no picture can be written to, before the run.

    Raises:
        PlanError: another format than PNG, SVG or PDF, or matplotlib is not installed.
    """
    if not isinstance(path, str | Path) or Path(path).suffix.lower() not in FORMATS:
        raise PlanError(f"{owner}: plot={str(path)!r} must be the path of a {', '.join(FORMATS)} file")
    if find_spec("matplotlib") is None:
        raise PlanError(
            f"{owner}: plot={str(path)!r} needs matplotlib, which is not installed.\n"
            "  pip install 'lightning-freeze[plot]'"
        )


def draw(timeline: Timeline, path: str | Path) -> None:
    """Write the picture of a timeline.

    Args:
        timeline: a timeline with at least one sample.
        path: a PNG, SVG or PDF file; its folder is created.

    Raises:
        PlanError: another format, matplotlib is not installed, or the file cannot be written.
    """
    check_path(path, "draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = len(timeline.stages)
    rows = min(0.32 * stages, _TALLEST)
    figure = Figure(figsize=(9.5, 2.4 + rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: the user's own figures and backend are not touched
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[max(2.0, rows), 1.1])
    _stages(figure, top, below, timeline)
    _metric(below, timeline)
    _ticks(top, below, timeline)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise PlanError(f"the picture cannot be written to {path}: {error.strerror or error}") from error


def _stages(figure: Any, top: Any, below: Any, timeline: Timeline) -> None:
    from matplotlib.colors import LogNorm

    rates = [rate for sample in timeline.samples for rate in sample.rates if rate]
    low, high = min(rates, default=1e-3), max(rates, default=1e-3)
    low = max(low, high * 1e-4)  # a cosine that ends near zero would use up the range of colours
    low, high = (low / 1.5, high * 1.5) if high / low < 1.01 else (low, high)
    times = [sample.time for sample in timeline.samples] + [timeline.end]
    shown = [
        [float("nan") if (rate := sample.rates[row]) is None else max(rate, low) for sample in timeline.samples]
        for row in range(len(timeline.stages))
    ]
    edges = [row - 0.5 for row in range(len(timeline.stages) + 1)]
    top.set_facecolor(_FROZEN)
    mesh = top.pcolormesh(times, edges, shown, cmap="viridis", norm=LogNorm(low, high), rasterized=True)
    points = 72 * min(0.32, _TALLEST / len(timeline.stages))  # of each row; below 6 points nobody reads a label
    labelled = range(0, len(timeline.stages), max(1, math.ceil(6 / points)))
    top.set_yticks(labelled, [_label(timeline, row) for row in labelled], fontsize=min(8.0, max(6.0, points - 0.5)))
    top.set_ylim(len(timeline.stages) - 0.5, -0.5)
    for edge in edges[1:-1]:
        top.axhline(edge, color="white", linewidth=min(1.5, points / 8))
    _unfreezings(top, timeline, points)
    top.set_title(timeline.title, loc="left", fontsize=10)
    figure.colorbar(
        mesh,
        ax=[top, below],
        label="learning rate (grey: frozen)",
        aspect=30 if len(timeline.stages) <= 40 else 90,
        pad=0.015,
    )


def _unfreezings(top: Any, timeline: Timeline, points: float) -> None:
    """Mark the start of training of a stage with a triangle, its end with a cross."""
    marks: dict[str, list[tuple[float, int]]] = {">": [], "X": []}
    for row in range(len(timeline.stages)):
        before = False
        for place, sample in enumerate(timeline.samples):
            trains = sample.rates[row] is not None
            if trains != before and place > 0:
                marks[">" if trains else "X"].append((sample.time, row))
            before = trains
    for marker, places in marks.items():
        if places and len(places) <= 20 * len(timeline.stages):
            xs, ys = zip(*places, strict=True)
            top.scatter(
                xs,
                ys,
                marker=marker,
                s=min(34, points**2),
                color="#d84315",
                edgecolors="white",
                linewidths=0.7,
                zorder=3,
            )


def _label(timeline: Timeline, row: int) -> str:
    name = timeline.stages[row]
    shown = name if len(name) <= 44 else f"{name[:18]}…{name[-25:]}"  # siblings differ at the end
    return f"{shown}  {_short(timeline.sizes[row])}"


def _short(count: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _metric(below: Any, timeline: Timeline) -> None:
    share = [100 * sample.trainable / (timeline.parameters or 1) for sample in timeline.samples]
    times = [sample.time for sample in timeline.samples] + [timeline.end]
    if not timeline.values:
        below.stairs(share, times, fill=True, color="#90a4ae")
        below.set_ylabel("% trainable")
        below.set_ylim(0, 105)
    else:
        below.plot(*zip(*timeline.values, strict=True), color="#37474f", marker="o", markersize=3, linewidth=1.3)
        below.set_ylabel(timeline.metric)
        below.grid(axis="y", color=_FROZEN)
        for time in _changes(timeline):
            below.axvline(time, color="#d84315", linewidth=0.8, linestyle=":")
    for side in ("top", "right"):
        below.spines[side].set_visible(False)


def _changes(timeline: Timeline) -> list[float]:
    found = [sample.time for sample in timeline.samples[1:] if sample.change]
    return found if len(found) <= 60 else []


def _ticks(top: Any, below: Any, timeline: Timeline) -> None:
    from matplotlib.ticker import MaxNLocator

    start = timeline.samples[0].time if timeline.samples else 0.0
    below.set_xlim(start, max(timeline.end, start + 1e-6))
    whole: Sequence[float] = [] if timeline.end - start < 1 else [1, 2, 2.5, 5, 10]
    if whole:
        below.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    below.set_xlabel("epoch")
    top.tick_params(axis="x", bottom=False, labelbottom=False)
    top.tick_params(axis="y", length=0)
    for side in ("top", "right", "bottom", "left"):
        top.spines[side].set_visible(False)
