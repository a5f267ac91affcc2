"""A suggestion as text: stages, candidates with their intervals, conclusions, and the YAML block."""

from __future__ import annotations

import math
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

from lightning_freeze.report import rendering
from lightning_freeze.suggest.intervals import Interval
from lightning_freeze.suggest.look import Look
from lightning_freeze.suggest.suggestion import Entry, Suggestion, sentences

WIDTH = 80
_DROPPED = 8  # maximum number of lines


def text(found: Suggestion) -> str:
    """The whole suggestion for a terminal of 80 columns."""
    parts = [render(look_table(found.look)), render(candidate_table(found))]
    lines = [f"- {line}" for line in [*sentences(found), *_end(found), *found.look.remarks, *found.remarks]]
    dropped = [f"  {candidate.title}, lr {candidate.rate:g}: {why}" for candidate, why in found.dropped[:_DROPPED]]
    if dropped:
        more = f" ({len(found.dropped) - _DROPPED} more)" if len(found.dropped) > _DROPPED else ""
        dropped = [f"Left out on the way{more}:", *dropped]
    block = ["To use it: fit --config YOURS --config THIS, with this block as THIS.", "", found.yaml().rstrip()]
    return "\n".join([*parts, *(wrap(line) for line in lines), *map(wrap, dropped), "", *block])


def _end(found: Suggestion) -> list[str]:
    return [] if found.complete else ["Stopped before the end of the plan: these are the measurements until then."]


def look_table(look: Look) -> Table:
    """The table of stages, with the cost of training down to each, and gradient statistics."""
    table = _table(f"Stages (learning rate as configured: {look.base:g})")
    for heading in ("stage", "parameters", "step if\nlowest", "gradient /\nweight", "Fisher", "signal /\nnoise"):
        left = heading == "stage"
        table.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    full = look.costs.get(frozenset(range(len(look.stages))))
    for place, row in enumerate(look.rows):
        found = look.costs.get(frozenset(range(place + 1)))
        share = f"{found.seconds / full.seconds:.0%}" if found and full and full.seconds else "?"
        cells = [f"{row.parameters:,}", share, f"{row.ratio:.2g}", f"{row.fisher:.1e}", f"{row.signal:.2g}"]
        table.add_row(row.name, *cells)
    return table


def candidate_table(found: Suggestion) -> Table:
    """The table of candidates in the last round, best first."""
    share = found.entries[0].share
    length = "whole runs" if share == 1 else f"{share:.0%} of a run"
    table = _table(f"Candidates: {found.metric.name} ({found.metric.mode}), mean and 95% interval, {length}")
    table.add_column("candidate", overflow="fold")
    for heading in ("lr", found.metric.name, "folds", "step", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    full = found.full()
    base = full.step if full and full.step else max(entry.step for entry in found.entries)
    for entry in found.entries:
        table.add_row(entry.candidate.title, f"{entry.candidate.rate:g}", *_cells(entry, base))
    return table


def _cells(entry: Entry, base: float) -> list[str]:
    share = f"{1e3 * entry.step:.0f} ms {entry.step / base:.0%}" if base else "?"
    memory = "?" if entry.memory is None else rendering.size(entry.memory)
    return [shown(entry.interval), str(len(entry.values)), share, memory]


def shown(value: Interval) -> str:
    """A mean with its interval as text."""
    return f"{value.mean:.3f}" + (f" ± {value.half:.3f}" if math.isfinite(value.half) else "")


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    return table


def render(table: Table) -> str:
    """Format a table as plain text of at most 80 columns."""
    out = StringIO()
    Console(file=out, width=WIDTH, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines()) + "\n"


def wrap(line: str) -> str:
    """Wrap a line to 80 columns."""
    out = StringIO()
    Console(file=out, width=WIDTH, highlight=False, markup=False).print(line, soft_wrap=False)
    return out.getvalue().rstrip("\n")
