"""Rows that outlive a run: found again by other processes, and by nobody who has other weights."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from processes import run_ranks

from lightning_freeze import FeatureCache, PlanError

WORK = 4 * 160  # rows that go through the frozen part in a run


def run(rows: Path, how: str = "cached") -> dict[str, Any]:
    report = rows.with_name(f"{rows.name}-{how}.json")
    run_ranks("cache_worker.py", rows, report, how, ranks=1, killed=how == "killed")
    return json.loads(report.read_text()) if how != "killed" else {}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["weights"] == other["weights"] and one["losses"] == other["losses"])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder that a run has left, what it found, and what the run without a cache finds."""
    rows = tmp_path_factory.mktemp("kept") / "rows"
    return rows, run(rows), run(rows, "plain")


def test_a_second_run_is_served_from_its_first_epoch_on_with_the_same_bits(first: Any) -> None:
    rows, cached, plain = first
    second = run(rows)
    assert plain["work"] == WORK
    assert cached["work"] < 0.5 * WORK
    assert second["work"] < 0.05 * WORK
    assert same(cached, plain)
    assert same(second, plain)


def test_other_weights_find_nothing_and_train_as_without(first: Any, tmp_path: Path) -> None:
    rows = shutil.copytree(first[0], tmp_path / "rows")
    other = run(rows, "other")
    assert other["work"] == first[1]["work"]
    assert same(other, run(rows, "other plain"))
    assert not same(other, first[1])


def test_a_run_that_is_killed_leaves_its_rows_to_the_next(tmp_path: Path, first: Any) -> None:
    run(tmp_path / "rows", "killed")
    again = run(tmp_path / "rows")
    assert again["work"] < 0.05 * WORK
    assert same(again, first[2])


@pytest.mark.parametrize("ending", [".rows", ".records"])
def test_flipped_bytes_are_computed_again(ending: str, first: Any, tmp_path: Path) -> None:
    rows = shutil.copytree(first[0], tmp_path / "rows")
    for path in rows.rglob(f"*{ending}"):
        data = bytearray(path.read_bytes())
        data[::500] = bytes(byte ^ 4 for byte in data[::500])
        path.write_bytes(data)
    again = run(rows)
    assert same(again, first[2])
    assert again["work"] > 0.05 * WORK


def test_two_at_once_are_safe_and_both_leave_what_can_be_read(first: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    with ThreadPoolExecutor(2) as pool:
        both = [*pool.map(lambda name: run_in(rows, name), ["one", "other"])]
    assert same(both[0], first[2])
    assert same(both[1], first[2])
    assert run(rows)["work"] < 0.05 * WORK


def run_in(rows: Path, name: str) -> dict[str, Any]:
    report = rows.with_name(f"{name}.json")
    run_ranks("cache_worker.py", rows, report, "cached", ranks=1)
    return dict(json.loads(report.read_text()))


@pytest.mark.parametrize("options", [{}, {"storage": "disk"}])
def test_files_that_stay_need_a_folder(options: Any) -> None:
    with pytest.raises(PlanError, match="persist=True keeps files"):
        FeatureCache(persist=True, **options)
