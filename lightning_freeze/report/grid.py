"""A table of plain text that fits a width: a name is never broken and a figure never cut.

Where the columns do not fit, they stand closer together; then some give way, and what stood in them is listed below the
table; then each name stands on a line of its own, with its figures under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        heading: in one line or several.
        right: whether its cells stand on the right, as figures do.
        yields: columns with the highest number give way first; 0 for those that stay.
        told: whether the cells of a column that gave way are listed below the table.
    """

    heading: str
    right: bool = False
    yields: int = 0
    told: bool = True


RULE: list[str] = []  # a row that is a line across the table


def grid(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> str:
    """The table; columns without a cell are left out.

    Args:
        columns: the first is that of the names.
        rows: a cell for each column, or `RULE`.
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
    """How wide the table is at least, with all its columns."""
    return sum(_widths(columns, rows, range(len(columns)))) + len(columns) - 1


def paragraph(text: str, width: int) -> list[str]:
    """A text in lines of at most so many characters, a word that is longer than that apart."""
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
    """Names on lines of their own: for names, or screens, for which nothing else is left."""
    figures = _lines(columns, rows, [place for place in shown if place], " ")
    height = len(figures) - len(rows)
    found = [f"  {line}" if k < height - 1 else line for k, line in enumerate(figures[:height])]
    for row, line in zip(rows, figures[height:], strict=True):
        found += [line] if not row else [part for part in (row[0], line and f"  {line}") if part]
    return found


def _told(column: Column, place: int, rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """What a column that gave way would have said."""
    cells = [f"{row[0]}: {row[place]}" for row in rows if row and row[place]]
    heading = column.heading.replace("\n", " ")
    return paragraph(f"{heading} of {'; '.join(cells)}", width)
