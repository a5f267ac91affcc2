"""Two real gloo processes: what is cached or compiled trains as what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from processes import run_ranks


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("savings")
    run_ranks("savings_worker.py", folder)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize(("cached", "plain"), [("memory", "plain"), ("disk", "plain"), ("gradual cached", "gradual")])
def test_the_cache_changes_no_bit_and_saves_work(cached: str, plain: str, reports: Any) -> None:
    assert reports[cached]["apart"] == reports[plain]["apart"] == 0.0
    assert reports[cached]["losses"] == reports[plain]["losses"]
    assert reports[cached]["weights"] == reports[plain]["weights"]
    assert reports[cached]["work"][0] < 0.8 * reports[plain]["work"][0]


def test_each_rank_has_a_file_that_is_gone_afterwards(reports: Any) -> None:
    assert reports["disk"]["files"] == 2
    assert reports["disk"]["left"] == reports["gradual cached"]["left"] == 0


def test_a_sample_has_the_same_versions_on_each_rank(reports: Any) -> None:
    assert reports["memory"]["rows"] == 64
    assert reports["views"]["rows"] == 2 * 64
    assert reports["views"]["apart"] == 0.0


@pytest.mark.parametrize("how", ["compiled", "compiled whole"])
def test_a_compiled_model_trains_in_every_stage(how: str, reports: Any) -> None:
    assert reports[how]["apart"] == 0.0
    assert reports[how]["losses"] == pytest.approx(reports["gradual"]["losses"], rel=1e-4)
