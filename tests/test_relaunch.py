"""A job under DDP that is killed and launched again, with as many processes or with others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import differences

WORKER = Path(__file__).with_name("relaunch_worker.py")


def launch(folder: Path, processes: int, case: str, mode: str) -> Any:
    command = [sys.executable, str(WORKER), str(folder), str(processes), case, mode]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert (done.returncode == 0) == (mode != "killed"), done.stderr[-3000:]
    return None if mode == "killed" else torch.load(folder / f"{case}-{mode}-{processes}.pt")


@pytest.mark.parametrize("case", ["metric", "mixed"])
def test_a_killed_job_launched_again_ends_as_if_never_killed(case: str, tmp_path: Path) -> None:
    whole = launch(tmp_path, 2, case, "whole")
    launch(tmp_path, 2, case, "killed")
    resumed = launch(tmp_path, 2, case, "resumed")
    assert resumed["trainable"][0][0] == 10  # it goes on from step 9, within the third epoch
    assert resumed["trainable"] == whole["trainable"][9:]
    assert not differences(whole["end"], resumed["end"])


def test_another_number_of_processes_takes_up_the_same_state(tmp_path: Path) -> None:
    launch(tmp_path, 2, "mixed", "killed")
    shutil.copytree(tmp_path, tmp_path / "copy")
    two, one = launch(tmp_path, 2, "mixed", "resumed"), launch(tmp_path / "copy", 1, "mixed", "resumed")
    assert not differences(two["begun"], one["begun"])
    assert two["trainable"] == one["trainable"]
    shutil.copytree(tmp_path / "copy", tmp_path / "back")  # what one process wrote, by two again
    back, again = launch(tmp_path / "back", 2, "mixed", "resumed"), launch(tmp_path / "copy", 1, "mixed", "resumed")
    assert not differences(back["begun"], again["begun"])
