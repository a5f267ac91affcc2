"""Stages from the first batch in two gloo processes: all ranks have those of rank 0, and the named run's weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers import SHARDS_ON_CPU
from processes import run_ranks

pytestmark = pytest.mark.matrix
HEAD_FIRST = [["model.6"], ["model.3", "model.4"], ["model.0", "model.1"]]
CASES = ["ddp", "uneven", *(["fsdp2"] if SHARDS_ON_CPU else [])]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("looking")
    run_ranks("looking_worker.py", folder, *CASES, timeout=400)
    return {case: json.loads((folder / f"{case}.json").read_text()) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_run_with_the_same_stages_named(case: str, reports: dict[str, Any]) -> None:
    for side in reports[case]:
        assert [patterns for _, patterns in side["found"]] == HEAD_FIRST
        assert side["auto"] == side["named"]
        assert len(side["auto"]) > 4


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_has_the_stages_and_the_weights_of_the_first(case: str, reports: dict[str, Any]) -> None:
    for side in reports[case]:
        assert side["resumed"] == side["found"]
        assert side["again"] == side["auto"][-len(side["again"]) :]
