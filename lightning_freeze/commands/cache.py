"""`lightning-freeze cache`: list and clear the rows of FeatureCache(persist=True)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from lightning_freeze.errors import PlanError

HELP = "list what FeatureCache(persist=True) keeps in a folder, or clear it"
DESCRIPTION = (
    "List the rows that FeatureCache(persist=True) keeps in a folder: of which part, how many, how old. Newest first."
)
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder and the option to clear it."""
    parser.add_argument("dir", metavar="DIR", type=Path, help="the dir of the callback")
    parser.add_argument("--clear", action="store_true", help="remove all rows, and nothing else in the folder")


def run(options: argparse.Namespace) -> str:
    """The table of rows, or a line about the removed rows.

    Raises:
        PlanError: the folder does not exist or cannot be cleared.
    """
    if not options.dir.is_dir():
        raise PlanError(f"cache {options.dir}: there is no such folder.\n  Name the dir of FeatureCache(persist=True)")
    from lightning_freeze.cache.folder import clear, kinds_in
    from lightning_freeze.report.rendering import size

    kinds = sorted(kinds_in(options.dir), key=lambda kind: -kind["used"])
    total = f"{sum(kind['rows'] for kind in kinds):,} rows, {size(sum(kind['bytes'] for kind in kinds))}"
    if not kinds:
        return f"{options.dir}: no rows of FeatureCache(persist=True)"
    if not options.clear:
        return f"{options.dir}: {total}\n{_table(kinds)}"
    try:
        clear(options.dir)
    except OSError as error:
        raise PlanError(f"cache {options.dir} --clear: {error}") from error
    return f"{options.dir}: removed {total}"


def _table(kinds: list[dict[str, Any]]) -> str:
    from lightning_freeze.report.grid import Column, grid
    from lightning_freeze.report.rendering import screen_width, size

    columns = [Column("part"), Column("model", yields=1), Column("rows", right=True), Column("size", right=True)]
    columns += [
        Column("used", right=True),
        Column("row", yields=2),
        Column("torch", yields=3),
        Column("digest", yields=4),
    ]
    rows = []
    for kind in kinds:
        dtype = str(kind.get("dtype", "?")).removeprefix("torch.")
        shape = f"{'x'.join(map(str, kind.get('shape', ())))} {dtype}".strip()
        cells = [kind.get("name", "?"), kind.get("model", "?"), f"{kind['rows']:,}", size(kind["bytes"])]
        rows.append([*cells, _age(kind["used"]), shape, kind.get("torch", "?"), kind["path"].name[:8]])
    return grid(columns, rows, screen_width())


def _age(moment: float) -> str:
    """The time since a moment, in the largest unit that fits."""
    seconds = max(0.0, time.time() - moment)
    length, unit = next(((length, unit) for length, unit in _UNITS if seconds >= length), _UNITS[-1])
    return f"{seconds / length:.0f} {unit} ago"
