"""What benchmarks/transfer.py says follows from its runs, and evidence.md says the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import readme
import transfer
from transfer_report import markdown, said, summary

FOUND = json.loads((transfer.HERE / "transfer.json").read_text())


def runs(arm: str, accuracies: Sequence[float], task: str = "images") -> list[dict[str, Any]]:
    settings = {"task": task, "regime": "few-shot", "arm": arm, "lr": 1e-3, "cpu_s": 10.0}
    return [settings | {"seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate(accuracies)]


def test_the_json_and_the_page_show_what_the_runs_found() -> None:
    rows = summary(FOUND["runs"])
    assert FOUND["summary"] == rows
    assert FOUND["said"] == said(rows, FOUND["runs"])
    text = readme.EVIDENCE.read_text()
    assert readme.replaced(text, "transfer", markdown(rows, FOUND["said"])) == text


def test_every_run_is_of_an_arm_as_it_is_now_and_each_arm_has_the_same_seeds() -> None:
    rates = {(name, arm.title): arm.lr for name, task in transfer.TASKS.items() for arm in task.arms}
    assert {(run["task"], run["arm"]): run["lr"] for run in FOUND["runs"]} == rates
    rows = FOUND["summary"]
    for task, regime in dict.fromkeys((row["task"], row["regime"]) for row in rows):
        of_task = {arm.title for arm in transfer.TASKS[task].arms}
        seeds = {row["arm"]: row["seeds"] for row in rows if (row["task"], row["regime"]) == (task, regime)}
        assert seeds == {arm: [0, 1, 2, 3, 4] for arm in of_task}


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ([0.60, 0.62, 0.61], "all others are clearly behind it."),
        ([0.60, 0.69, 0.71], "not clearly behind it: other."),
        ([0.60, 0.62], "not clearly behind it: other."),
    ],
)
def test_an_arm_is_behind_when_the_seeds_agree_on_it(other: list[float], verdict: str) -> None:
    found = [*runs("best", [0.70, 0.71, 0.72]), *runs("other", other)]
    assert said(summary(found), found) == [f"images, few-shot: the highest mean is that of best (0.710); {verdict}"]


def test_one_seed_has_no_spread_and_says_so() -> None:
    found = [*runs("one", [0.7]), *runs("other", [0.1])]
    assert [row["std"] for row in summary(found)] == [None, None]
    assert "With 1 seed(s) there is no spread" in said(summary(found), found)[0]


def test_what_is_there_is_not_run_again_and_arms_keep_the_same_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []

    def run(task: Any, arm: transfer.Arm, data: Any, epochs: int, seed: int) -> dict[str, Any]:
        ran.append((arm.title, seed))
        return {"accuracy": 0.5, "cpu_s": 1.0, "trainable_share": 1.0}

    monkeypatch.setattr(transfer, "run", run)
    task = transfer.Task(lambda lr: None, lambda seed, full, quick: None, transfer.TASKS["text"].arms, 1, 1)  # type: ignore[arg-type, return-value]
    monkeypatch.setitem(transfer.TASKS, "text", task)
    options = transfer.arguments(["--task", "text", "--seeds", "0", "1", "--arms", "full", "gradual"])
    found = [*runs("full", [0.5], task="text")]
    transfer.run_missing(options, found, lambda: None)
    assert ran == [("gradual", 0), ("full", 1), ("gradual", 1)]
    transfer.run_missing(options, found, lambda: None)
    assert len(ran) == 3
