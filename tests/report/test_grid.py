"""A plain table fits its width without breaking a name or cutting a figure."""

from __future__ import annotations

import pytest

from lightning_freeze.report.grid import RULE, Column, grid

COLUMNS = [
    Column("stage"),
    Column("size", right=True),
    Column("factor", yields=1, told=False),
    Column("note", yields=2),
]
ROWS = [
    ["head", "5,130", "0.5", ""],
    ["encoder.layer.11", "8,393,728", "0.25", "frozen by you"],
    RULE,
    ["all", "9", "", ""],
]


def test_a_wide_screen_shows_every_column() -> None:
    assert grid(COLUMNS, ROWS, 80).splitlines() == [
        "stage                  size  factor  note",
        "─" * 50,
        "head                  5,130  0.5",
        "encoder.layer.11  8,393,728  0.25    frozen by you",
        "─" * 50,
        "all                       9",
    ]


@pytest.mark.parametrize("width", [28, 34, 44, 60, 100])
def test_names_and_figures_stay_whole_at_every_width(width: int) -> None:
    lines = grid(COLUMNS, ROWS, width).splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert all(word in text for word in ("encoder.layer.11", "8,393,728", "5,130"))


def test_what_gives_way_is_told_below_unless_another_column_has_it() -> None:
    text = grid(COLUMNS, ROWS, 30)
    assert "note of encoder.layer.11:" in text
    assert "factor" not in text


@pytest.mark.parametrize("name", ["a", "b" * 39, "c" * 60, "d.e" * 40])
def test_a_name_wider_than_the_rest_stands_on_a_line_of_its_own(name: str) -> None:
    lines = grid(COLUMNS[:2], [[name, "123,456,789"], ["head", "5"]], 40).splitlines()
    assert any(line.startswith(name) for line in lines)
    assert any("123,456,789" in line for line in lines)
    assert max(map(len, lines)) <= max(40, len(name))
