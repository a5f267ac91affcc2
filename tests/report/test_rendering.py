"""Text for a terminal: widths, sizes, ranges."""

from __future__ import annotations

import sys

import pytest
from tqdm import tqdm

from lightning_freeze.report.rendering import screen_width, show, size, value_range


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_500_000, "1.5 MB"),
        (2e9, "2 GB"),
        (1.5e12, "1.5 TB"),
        (4e15, "4,000 TB"),
    ],
)
def test_sizes_have_a_decimal_unit(count: float, text: str) -> None:
    assert size(count) == text


def test_a_range_is_its_first_and_last_value() -> None:
    assert value_range([], ".2e") == "-"
    assert value_range([0.25], ".3g") == "0.25"
    assert value_range([0.1, 0.2, 0.4], ".3g") == "0.1 to 0.4"


@pytest.mark.parametrize(("columns", "width"), [("", 80), ("30", 40), ("100", 100), ("400", 140)])
def test_the_width_is_that_of_the_screen_within_bounds(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert screen_width() == width


def test_a_bar_on_the_screen_is_redrawn_after_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=2, file=sys.stdout, desc="bar", mininterval=0) as bar:
        bar.update()
        show("a line of its own")
    lines = capsys.readouterr().out.replace("\r", "\n").splitlines()
    assert "a line of its own" in lines
