"""FSDP2 in real gloo processes: the weights of DDP, and the same run bit for bit from every checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SHARDS_ON_CPU
from processes import run_ranks

pytestmark = pytest.mark.skipif(not SHARDS_ON_CPU, reason="this torch shards on a GPU only")
CASES = ["rates", "rates, one file", "steps", "refreeze", "refreeze, one file", "host", "construction", "best"]
CASES += ["thaw", "anchored"]
ROUNDED = ["adaptive"]  # norms of parts are added up in another order than those of replicas


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for processes, cases in ((2, [*CASES, *ROUNDED]), (1, ["refreeze", "rates, one file", "host", "best"])):
        run_ranks("sharded_worker.py", folder, processes, *cases, ranks=processes, timeout=400)
    return folder


@pytest.mark.parametrize("case", [*CASES, *ROUNDED])
def test_a_sharded_run_resumed_from_any_checkpoint_ends_as_if_never_interrupted(case: str, folder: Path) -> None:
    report = json.loads((folder / f"{case}.json").read_text())
    assert report["checkpoints"] >= 8
    assert not report["broken"]
    assert not report["shadowed"], "the strategy has its own methods back"
    assert len(set(report["trainable"])) > 1, "nothing changed, so nothing was shown"


@pytest.mark.parametrize("case", CASES)
def test_sharded_weights_are_those_of_replicas(case: str, folder: Path) -> None:
    assert json.loads((folder / f"{case}.json").read_text())["apart"] == 0.0


@pytest.mark.parametrize("case", ROUNDED)
def test_norms_over_all_ranks_are_those_of_replicas(case: str, folder: Path) -> None:
    assert json.loads((folder / f"{case}.json").read_text())["apart"] < 1e-5


@pytest.mark.parametrize("case", ["refreeze", "rates, one file", "host", "best"])
def test_one_process_takes_up_what_two_wrote(case: str, folder: Path) -> None:
    two, one = (torch.load(folder / f"{case}-{processes}.pt") for processes in (2, 1))
    assert two.keys() == one.keys()
    for checkpoint, begun in two.items():
        assert begun.keys() == one[checkpoint].keys()
        different = [key for key, value in begun.items() if not _equal(value, one[checkpoint][key])]
        assert not different, checkpoint


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
