"""Measurements on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_freeze import ResumeError
from lightning_freeze.suggest.record import Record
from lightning_freeze.suggest.trial import Measured

ABOUT = {"model": "Net", "seed": 0}


def test_what_was_measured_is_there_again_with_the_time_spent(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.runs.jsonl"
    first = Record(path, ABOUT)
    first.add_trial(("head", "eval", 0.1, 0, 0.25), Measured(0.5, 1.0, 4, 0.25), spent=3.0)
    again = Record(path, ABOUT)
    assert again.trial("head", "eval", 0.1, 0, 0.25) == Measured(0.5, 1.0, 4, 0.25)
    assert again.trial("head", "eval", 0.1, 1, 0.25) is None
    assert again.spent == 3.0


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "out.runs.jsonl"
    Record(path, ABOUT).add(("sweep",), {"turning": 1.0}, 1.0)
    path.write_text(path.read_text() + '{"key": ["swe')
    assert Record(path, ABOUT).get("sweep") == {"turning": 1.0}


def test_measurements_of_another_search_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.runs.jsonl"
    Record(path, ABOUT)
    with pytest.raises(ResumeError, match=r"seed was 0 and is 1.\n  Delete it, or give another --out"):
        Record(path, ABOUT | {"seed": 1})


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    Record(None, ABOUT).add(("sweep",), {"turning": 1.0}, 1.0)
    assert [*tmp_path.iterdir()] == []
