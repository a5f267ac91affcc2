"""Text for a terminal: tables without trailing spaces, sizes with units."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from textwrap import wrap
from typing import TextIO

from tqdm import tqdm

_UNKNOWN, _WIDEST = 80, 140  # columns where the output is no terminal; more than that nobody reads across


def show(text: str) -> None:
    """Print without breaking a progress bar of tqdm or rich.

    On a terminal, lines that are too long fold between words; a file or a pipe gets them whole.
    """
    tqdm.write(folded(text, sys.stdout))


def folded(text: str, stream: TextIO) -> str:
    """A text as a stream is to show it: on a terminal, lines that are too long fold between words."""
    if not stream.isatty():
        return text
    return "\n".join(part for line in text.splitlines() for part in _folded(line, screen_width()))


def _folded(line: str, width: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    lines = wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines if len(line) > width else [line]


def screen_width() -> int:
    """The width of the terminal, or `COLUMNS`; 80 if the output is a pipe, a file or a notebook."""
    if not (sys.stdout.isatty() or os.environ.get("COLUMNS")):
        return _UNKNOWN
    return max(40, min(shutil.get_terminal_size((_UNKNOWN, 24)).columns, _WIDEST))


def value_range(values: Sequence[float], form: str) -> str:
    """One value, or the smallest and the largest of several."""
    if not values:
        return "-"
    return format(values[0], form) if len(values) == 1 else f"{values[0]:{form}} to {values[-1]:{form}}"


def percent(part: float, whole: float) -> str:
    """A part of a whole, with two digits where it is small: 0.046%, 9.3%, 75.1%."""
    share = 100 * part / (whole or 1)
    return f"{share:.1f}%" if share >= 1 or share == 0 else f"{share:.2g}%"


def size(count: float) -> str:
    """Bytes with a unit: 1.5 MB is 1,500,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 1000 else f"{count:,.0f} TB"
