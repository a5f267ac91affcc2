"""`lightning-freeze convert`: a schedule becomes a block that makes the same callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_freeze.cli import main

SCHEDULE = {
    0: {"params": ["head.weight", "head.bias"], "max_transition_epoch": 1},
    1: {"params": ["backbone.(3|4).*"], "max_transition_epoch": 3, "lr": 2.0e-2},
    2: {"params": ["backbone.[01]"], "max_transition_epoch": 4},
}


@pytest.fixture
def schedule(tmp_path: Path) -> str:
    file = tmp_path / "schedule.yaml"
    file.write_text(yaml.safe_dump({**SCHEDULE, 1: {**SCHEDULE[1], "new_lr_scheduler": {}}}))
    return str(file)


def block(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, list[str]]:
    """The arguments of the one callback, and the comments."""
    assert main(["convert", *arguments]) == 0
    printed = capsys.readouterr().out
    (entry,) = yaml.safe_load(printed)["trainer"]["callbacks"]
    assert entry["class_path"] == "lightning_freeze.GradualUnfreeze"
    return entry["init_args"], [line for line in printed.splitlines() if line.startswith("#")]


def test_phases_become_stages_and_what_has_no_counterpart_a_comment(
    schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, remarks = block(capsys, schedule, "--epoch-transitions-only")
    assert options["at"] == [0, 1, 3]
    assert any("phase 1: new_lr_scheduler has no counterpart" in line for line in remarks)
    assert any("give lr=" in line for line in remarks)


def test_early_stopping_becomes_a_metric_trigger(schedule: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, _ = block(capsys, schedule, "--monitor", "val_acc", "--patience", "5", "--lr", "0.1")
    assert (options["monitor"], options["patience"]) == ("val_acc", 5)
    assert [stage.get("max_epochs") for stage in options["stages"][:2]] == [1, 2]


def test_rates_of_phases_become_factors_of_the_optimizer_s_rate(
    schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, remarks = block(capsys, schedule, "--lr", "0.1", "--base-max-lr", "0.05", "--epoch-transitions-only")
    assert [stage.get("factor") for stage in options["stages"]] == [None, pytest.approx(0.2), pytest.approx(0.5)]
    assert not any("give lr=" in line for line in remarks)


def test_phases_after_a_depth_are_left_out(schedule: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, _ = block(capsys, schedule, "--epoch-transitions-only", "--max-depth", "1")
    assert options["at"] == [0, 1]


def test_a_file_that_is_not_there_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml cannot be read" in capsys.readouterr().err
