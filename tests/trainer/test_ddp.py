"""Two real gloo processes: replicas stay equal, bit for bit, and only what trains is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import launch, run_alone, run_ranks

HOOKS = ["fp16 hook", "PowerSGD"]
CASES = ["plain", "rates", "refreeze", "steps", "metric", "best", "unused", "views", "static", "bf16", "manual", "many"]
CASES += ["thaw"]
CASES += HOOKS


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ddp")
    launch("ddp_worker.py", folder, *CASES, "lightning's own", "disagreement")
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return found | {path.stem: path.read_text() for path in folder.glob("*.txt")}


@pytest.mark.parametrize("case", CASES)
def test_replicas_are_equal_after_every_epoch_and_only_what_trains_is_reduced(case: str, reports: Any) -> None:
    report = reports[case]
    assert set(report["apart"]) == {0.0}
    assert report["reduced"] == report["trainable"]
    assert len(set(report["trainable"])) > 1, "nothing changed, so nothing was shown"


def test_the_same_check_sees_the_replicas_of_backbone_finetuning_drift_apart(reports: Any) -> None:
    report = reports["lightning's own"]
    assert report["apart"][1] == 0.0, "before the unfreezing"
    assert report["apart"][-1] > 1e-3
    assert report["reduced"][-1] < report["trainable"][-1]


@pytest.mark.parametrize("case", HOOKS)
def test_a_communication_hook_goes_on_and_sees_only_what_trains(case: str, reports: Any) -> None:
    assert reports[case]["hooked"] == reports[case]["trainable"]


def test_four_processes_stay_equal_under_a_metric_trigger(tmp_path: Path) -> None:
    run_ranks("ddp_worker.py", tmp_path, "four", ranks=4)
    report = json.loads((tmp_path / "four.json").read_text())
    assert set(report["apart"]) == {0.0}
    assert report["reduced"] == report["trainable"]
    assert len(set(report["trainable"])) > 1


def test_options_of_ddp_do_not_change_the_weights(reports: Any) -> None:
    assert reports["plain"]["weights"] == reports["unused"]["weights"] == reports["views"]["weights"]
    assert reports["plain"]["weights"] == reports["static"]["weights"]


def test_what_a_thaw_reaches_trains_as_if_it_had_never_been_frozen(reports: Any) -> None:
    assert reports["thaw"]["weights"] == reports["best"]["weights"]


def test_a_step_trigger_waits_for_the_end_of_the_accumulation_window(reports: Any) -> None:
    trainable = reports["steps"]["trainable_at"]
    changes = [place for place in range(1, len(trainable)) if trainable[place] != trainable[place - 1]]
    assert changes == [6, 12]  # steps 3 and 6, of two batches each


def test_a_hundred_changes_leave_one_wrapper(reports: Any) -> None:
    assert reports["many"]["wrappers"] == reports["plain"]["wrappers"] == 1


def test_ranks_that_disagree_say_so_on_every_rank_instead_of_hanging(reports: Any) -> None:
    for rank in (0, 1):
        assert "ranks disagree about what trains: 'model." in reports[f"disagreement-{rank}"]


@pytest.mark.parametrize("case", ["fork", pytest.param("spawn", marks=pytest.mark.matrix)])
def test_forked_and_spawned_processes_train_as_launched_ones_do(case: str, tmp_path: Path, reports: Any) -> None:
    run_alone("ddp_worker.py", tmp_path, case)
    assert json.loads((tmp_path / f"{case}.json").read_text())["weights"] == reports["plain"]["weights"]
