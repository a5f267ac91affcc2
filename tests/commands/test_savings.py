"""`lightning-freeze savings`: the cost of every stage as a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_freeze.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "cached_digits.yaml"


def test_the_command_prints_every_stage_of_a_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["savings", "--config", str(EXAMPLE)]) == 0
    said = capsys.readouterr().out
    assert [line.split()[1].rstrip(",") for line in said.splitlines() if line.lstrip().startswith("epoch ")][:3] == [
        "0",
        "3",
        "6",
    ]
    assert "everything" in said
    assert "100%" in said


def test_a_user_error_has_no_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["savings", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err
