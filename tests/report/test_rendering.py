"""Text for a terminal: widths, sizes, ranges, and what a run prints beside a progress bar of tqdm or rich."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from helpers import BEFORE_2_6
from tqdm import tqdm

from lightning_freeze.report.rendering import percent, screen_width, show, size, value_range

WORKER = Path(__file__).parents[1] / "workers" / "terminal_worker.py"
LINE = "epoch 1, step 2: unfrozen body.2; 4,418 parameters (34.0%) train"


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


def on_a_terminal(columns: int) -> list[str]:
    """What the worker prints on a terminal of so many columns, line by line, without colours and cursor movements."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, str(WORKER)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        written += read
    os.close(ours)
    assert process.wait(60) == 0, written.decode()
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()))


@pytest.mark.skipif(BEFORE_2_6, reason="rich bars of older Lightning clear a display that newer rich has already left")
def test_on_80_columns_no_name_and_no_figure_is_broken_beside_either_progress_bar() -> None:
    lines = [line.rstrip() for line in on_a_terminal(80)]
    starts = [place for place, line in enumerate(lines) if line.startswith("lightning_freeze: ")]
    assert len(starts) == 2
    for start in starts:
        title, figures, *table = lines[start : start + 12]
        assert title == "lightning_freeze: ClassifierOfPhotographsWithALongName"
        assert figures == "  130 of 12,994 parameters (1.0%) train now"
        assert sum(line.startswith("───") for line in table) == 3
        assert all(len(line) <= 80 for line in table)
        assert [line.split()[0] for line in table if re.match(r"\w.*\d%", line)] == [
            "head",
            "body.2",
            "body.0-1",
            "all",
        ]
    assert lines.count(LINE) == 2


def test_a_long_line_folds_on_a_terminal_and_is_whole_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "head\n  " + "stage " * 20
    show(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    show(text)
    head, first, *others = capsys.readouterr().out.splitlines()
    assert head == "head"
    assert first.startswith("  stage")
    assert others
    assert all(line.startswith("    stage") and len(line) <= 60 for line in others)


@pytest.mark.parametrize(("part", "text"), [(0, "0.0%"), (46, "0.046%"), (9_312, "9.3%"), (100_000, "100.0%")])
def test_a_small_part_keeps_two_digits(part: int, text: str) -> None:
    assert percent(part, 100_000) == text
