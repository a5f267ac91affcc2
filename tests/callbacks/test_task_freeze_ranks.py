"""Two real gloo processes with different tasks: equal after every batch, and equal to averaging by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from branches import batch_of, branch
from processes import run_ranks
from task_worker import CASES, EPOCHS, SCHEDULES

REFUSED = ["static graph", "sharded"]
TRAINED = [case for case in CASES if case not in REFUSED]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tasks")
    run_ranks("task_worker.py", folder, *CASES)
    found = {path.stem: torch.load(path) for path in folder.glob("*.pt")}
    return found | {path.stem: path.read_text() for path in Path(folder).glob("*.txt")}


@pytest.mark.parametrize("case", TRAINED)
def test_ranks_are_equal_after_every_batch(case: str, reports: Any) -> None:
    assert len(reports[case]["apart"]) >= EPOCHS * 6
    assert set(reports[case]["apart"]) == {0.0}


@pytest.mark.parametrize("case", ["frozen beside", "rotating beside", "progressive beside"])
def test_what_trains_changes_beside_it(case: str, reports: Any) -> None:
    assert len(set(reports[case]["training"])) > 1


@pytest.mark.parametrize("case", [case for case in TRAINED if "beside" not in case])
def test_the_weights_are_those_of_averaging_by_hand(case: str, reports: Any) -> None:
    expected = averaged_by_hand(case)
    for name, value in reports[case]["weights"].items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def averaged_by_hand(case: str) -> Any:
    """Both ranks' batches in one process: gradients are halved, and absent branches have none."""
    schedule, model, options, _ = CASES[case]()
    window = 2 if case == "manual" else options.get("accumulate_grad_batches", 1)
    scale = 1 if case == "manual" else window
    optimizers = model.configure_optimizers()
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    for _ in range(EPOCHS):
        for start in range(0, 6, window):
            model.zero_grad()
            present = set()
            for rank, tasks in enumerate(SCHEDULES[schedule]):
                for k in range(start, start + window):
                    (model.loss(batch_of(tasks[k], 100 * rank + k)) / 2 / scale).backward()
                    present |= set(tasks[k])
            for name, parameter in model.named_parameters():
                if branch(name) and branch(name) not in present:
                    parameter.grad = None
            if "gradient_clip_val" in options:
                torch.nn.utils.clip_grad_norm_(model.parameters(), options["gradient_clip_val"])
            for optimizer in optimizers:
                optimizer.step()
    return model.state_dict()


def test_the_users_options_of_ddp_stay_as_they_were(reports: Any) -> None:
    assert {reports[case]["unused"] for case in TRAINED} == {None}


@pytest.mark.parametrize(
    ("case", "message"),
    [("static graph", "DDPStrategy(static_graph=True)"), ("sharded", "ModelParallelStrategy with different data")],
)
def test_strategies_that_would_hang_are_refused_on_every_rank(case: str, message: str, reports: Any) -> None:
    for rank in (0, 1):
        assert reports[f"{case}-{rank}"].startswith("UnsupportedStrategyError: TaskFreeze cannot work")
        assert message in reports[f"{case}-{rank}"]
