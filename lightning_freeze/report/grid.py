"""A plain text table that fits a width without breaking names or cutting figures.

If the columns do not fit, the gaps get narrower. Then columns are removed, and their content is listed below the table.
Then each name gets a line of its own, with its figures below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        heading: the heading, in one line or several.
        right: whether cells are right-aligned, as figures are.
        yields: columns with the highest number are removed first; 0: the column is never removed.
        told: whether the cells of a removed column are listed below the table.
    """

    heading: str
    right: bool = False
    yields: int = 0
    told: bool = True


RULE: list[str] = []  # a horizontal line


def grid(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> str:
    """Format a table. Empty columns are left out.

    Args:
        columns: the columns; the first holds the names.
        rows: one cell per column, or `RULE`.
        width: characters in a line.
    """
    shown = [place for place, _ in enumerate(columns) if place == 0 or any(row[place] for row in rows if row)]
    below: list[int] = []
    while True:
        needed = sum(_widths(columns, rows, shown))
        gap = min(2, (width - needed) // max(1, len(shown) - 1))
        yielding = [place for place in shown if columns[place].yields]
        if gap > 0 or not yielding:
            break
        out = max(yielding, key=lambda place: columns[place].yields)
        shown.remove(out)
        below += [out] if columns[out].told else []
    lines = _lines(columns, rows, shown, " " * gap) if gap > 0 else _stacked(columns, rows, shown)
    return "\n".join([*lines, *(line for place in sorted(below) for line in _told(columns[place], place, rows, width))])


def width_of(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """The minimum width of the table with all its columns."""
    return sum(_widths(columns, rows, range(len(columns)))) + len(columns) - 1


def paragraph(text: str, width: int) -> list[str]:
    """Wrap a text to lines of at most `width` characters; a longer word gets a line of its own."""
    return wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int]) -> list[int]:
    return [
        max([*map(len, columns[place].heading.split("\n")), *(len(row[place]) for row in rows if row)])
        for place in shown
    ]


def _lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int], gap: str) -> list[str]:
    widths = _widths(columns, rows, shown)
    headings = [columns[place].heading.split("\n") for place in shown]
    height = max(map(len, headings))
    rule = "─" * (sum(widths) + len(gap) * (len(shown) - 1))

    def line(cells: Sequence[str]) -> str:
        fitted = [
            cell.rjust(size) if columns[place].right else cell.ljust(size)
            for cell, size, place in zip(cells, widths, shown, strict=True)
        ]
        return gap.join(fitted).rstrip()

    filled = [[""] * (height - len(lines)) + lines for lines in headings]
    head = [line([lines[k] for lines in filled]) for k in range(height)]
    return [*head, rule, *(line([row[place] for place in shown]) if row else rule for row in rows)]


def _stacked(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int]) -> list[str]:
    """The table with each name on a line of its own, for long names or narrow screens."""
    figures = _lines(columns, rows, [place for place in shown if place], " ")
    height = len(figures) - len(rows)
    found = [f"  {line}" if k < height - 1 else line for k, line in enumerate(figures[:height])]
    for row, line in zip(rows, figures[height:], strict=True):
        found += [line] if not row else [part for part in (row[0], line and f"  {line}") if part]
    return found


def _told(column: Column, place: int, rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines that list the cells of a removed column."""
    cells = [f"{row[0]}: {row[place]}" for row in rows if row and row[place]]
    heading = column.heading.replace("\n", " ")
    return paragraph(f"{heading} of {'; '.join(cells)}", width)
