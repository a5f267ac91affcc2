"""A job under DDP that is killed and launched again, with as many processes or with others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks
from resuming import differences

CASES = ["metric", "mixed"]


def run(folder: Path, processes: int, mode: str, *cases: str) -> dict[str, Any]:
    """What each case found; cases of one mode run one after the other in the same processes, if they survive."""
    run_ranks("relaunch_worker.py", folder, processes, mode, *cases, ranks=processes, killed=mode == "killed")
    return {} if mode == "killed" else {case: torch.load(folder / f"{case}-{mode}-{processes}.pt") for case in cases}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the killed jobs left behind."""
    folder = tmp_path_factory.mktemp("relaunch") / "killed"
    for case in CASES:
        run(folder, 2, "killed", case)
    return folder


@pytest.fixture(scope="module")
def resumed(killed: Path) -> dict[str, Any]:
    return run(shutil.copytree(killed, killed.with_name("two")), 2, "resumed", *CASES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("whole"), 2, "whole", *CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_killed_job_launched_again_ends_as_if_never_killed(case: str, whole: Any, resumed: Any) -> None:
    assert resumed[case]["trainable"][0][0] == 10  # it goes on from step 9, within the third epoch
    assert resumed[case]["trainable"] == whole[case]["trainable"][9:]
    assert not differences(whole[case]["end"], resumed[case]["end"])


def test_another_number_of_processes_takes_up_the_same_state(killed: Path, resumed: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(killed, tmp_path / "one")
    one = run(folder, 1, "resumed", "mixed")["mixed"]
    assert not differences(resumed["mixed"]["begun"], one["begun"])
    assert resumed["mixed"]["trainable"] == one["trainable"]
    again = run(shutil.copytree(folder, tmp_path / "again"), 1, "resumed", "mixed")["mixed"]
    back = run(shutil.copytree(folder, tmp_path / "back"), 2, "resumed", "mixed")["mixed"]  # what one process wrote
    assert not differences(back["begun"], again["begun"])


def test_a_single_process_that_is_killed_goes_on_under_its_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for its picture
    whole = run(tmp_path, 1, "whole", "watched")["watched"]
    run(tmp_path, 1, "killed", "watched")
    resumed = run(tmp_path, 1, "resumed", "watched")["watched"]
    assert resumed["trainable"][0][0] == 10
    assert not differences(whole["end"], resumed["end"])
