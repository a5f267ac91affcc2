"""FreezeAudit in two processes: every rank hears of what happened on one, and nobody hangs."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_worker import CASES
from processes import run_ranks


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder: Path = tmp_path_factory.mktemp("audit")
    run_ranks("audit_worker.py", folder)
    return {case: [(folder / f"{case}-{rank}.txt").read_text() for rank in (0, 1)] for case in CASES}


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("right")])
def test_no_false_alarm(case: str, said: dict[str, list[str]]) -> None:
    assert said[case] == ["7 audits", "7 audits"]


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("frozen on rank 1")])
def test_what_moved_on_one_rank_stops_all(case: str, said: dict[str, list[str]]) -> None:
    first, second = said[case]
    assert first == second
    assert "'model.0.weight' (stage 'model.0-1-and-1-more') is frozen and has moved (on rank 1)" in first
    assert "audit at the end of epoch 1" in first


def test_a_trainable_weight_that_differs_between_ranks_is_named(said: dict[str, list[str]]) -> None:
    first, second = said["ddp, trainable on rank 1"]
    assert first == second
    assert "'model.6.weight' (stage 'model.6') has other bits on rank 1 than on rank 0" in first
