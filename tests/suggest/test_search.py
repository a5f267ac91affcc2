"""A whole search on a module and data that are not made for it: what it says, and that nothing else changes."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_cnn import DigitNet, Digits
from helpers import tensors, trainer

from lightning_freeze import PlanError
from lightning_freeze.suggest import search, suggest
from lightning_freeze.suggest.text import text

OPTIONS = {"max_epochs": 2, "accelerator": "cpu"}
pytestmark = pytest.mark.usefixtures("few_runs")


def searched(budget: float, **more: Any) -> Any:
    torch.manual_seed(0)  # the same new head
    return suggest(DigitNet(), Digits(), budget, trainer=OPTIONS, folds=2, progress=False, **more)


def test_it_finds_measures_and_says_and_leaves_everything_as_it_was() -> None:
    module, data = DigitNet(), Digits()
    before, attributes = tensors(module), dict(vars(data))
    torch.manual_seed(7)
    random.seed(7)
    state, python_state = torch.get_rng_state(), random.getstate()
    found = suggest(module, data, 10, trainer=OPTIONS, folds=2, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert vars(data) == attributes
    assert module._trainer is None
    assert found.metric.name == "val_accuracy"
    assert found.entries == sorted(found.entries, key=lambda entry: -entry.interval.mean)
    assert "Candidates: val_accuracy (max)" in text(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(found.callbacks(), 2).fit(DigitNet(), Digits())


def test_a_second_call_goes_on_from_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ran = tmp_path / "found.yaml", list[Any]()
    trial = search.trial

    def counted(*arguments: Any) -> Any:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(arguments)
        return trial(*arguments)

    monkeypatch.setattr(search, "trial", counted)
    first = searched(10, out=out)
    assert not first.complete
    assert out.exists()
    kept = [json.loads(line) for line in Path(f"{out}.runs.jsonl").read_text().splitlines()]
    assert len([line for line in kept if line.get("key", [""])[0] not in ("", "sweep")]) == 3
    ran.clear()
    searched(10, out=out)
    again = [json.loads(line)["key"] for line in Path(f"{out}.runs.jsonl").read_text().splitlines()[1:]]
    assert len({json.dumps(key) for key in again}) == len(again)


def test_ctrl_c_before_anything_is_measured_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "trial", interrupted)
    with pytest.raises(PlanError, match="interrupted before one candidate was measured"):
        searched(10)


def test_when_every_candidate_breaks_down_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        return search.Measured(float("nan"), 0.0, 0, 0.0, "RuntimeError: out of memory")

    monkeypatch.setattr(search, "trial", broken)
    with pytest.raises(PlanError, match=r"every candidate broke down; the first, .*: RuntimeError: out of memory"):
        searched(10)


def test_a_budget_for_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="budget"):
        searched(1e-6)
