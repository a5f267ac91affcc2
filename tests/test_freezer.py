"""Freezer: the same policies and the same exactness in a loop without a Trainer, also in two processes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fabric_loop
import freezer_worker
import plain_loop
import pytest
import torch
from helpers import SHARDS_ON_CPU
from processes import run_ranks
from torch import nn

from lightning_freeze import (
    BatchNormEval,
    FreezeAudit,
    FreezeLayers,
    Freezer,
    GradualUnfreeze,
    PlanError,
    ProgressiveFreeze,
    ResumeError,
)

DISTRIBUTED = ["ddp", "fabric ddp", *(["fabric fsdp2"] if SHARDS_ON_CPU else [])]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("freezer")
    freezer_worker.main(str(folder), "plain")
    run_ranks("freezer_worker.py", folder, *DISTRIBUTED)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("kind", ["plain", *DISTRIBUTED])
class TestEveryLoop:
    def test_replicas_are_equal_and_nothing_frozen_moves(self, kind: str, reports: Any) -> None:
        report = reports[kind]
        assert set(report["apart"]) == {0.0}
        assert report["frozen moved"] == [[]] * freezer_worker.EPOCHS
        assert report["frozen"][0] > report["frozen"][-1] == 0, "nothing changed, so nothing was shown"

    def test_only_what_trains_is_reduced(self, kind: str, reports: Any) -> None:
        expected = reports[kind]["trainable"] if "ddp" in kind else [0] * freezer_worker.EPOCHS
        assert reports[kind]["reduced"] == expected

    def test_rates_have_the_factors_of_their_stages_and_follow_the_scheduler(self, kind: str, reports: Any) -> None:
        rate = freezer_worker.RATE
        after = [rate * 0.5 ** ((epoch + 1) // 2) for epoch in range(freezer_worker.EPOCHS)]
        for rates, top in zip(reports[kind]["rates"], after, strict=True):
            assert sorted(rates) == pytest.approx([top * 0.25, top * 0.5, top])

    def test_a_resumed_run_ends_with_the_same_bits(self, kind: str, reports: Any) -> None:
        assert reports[kind]["resumed"] == [True] * (freezer_worker.EPOCHS - 1)

    def test_flags_are_as_before_when_the_block_ends(self, kind: str, reports: Any) -> None:
        assert reports[kind]["restored"]


class TestOneProcess:
    def model(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))

    def test_held_modules_ignore_train_until_the_end(self) -> None:
        model = self.model()
        with Freezer(model, [BatchNormEval()], verbose=False) as freezer:
            freezer.epoch(0)
            model.train()
            assert not model[1].training
        assert model[1].training

    def test_the_optimizer_before_the_freezer_is_refused_by_what_to_do(self) -> None:
        def run() -> tuple[Freezer, torch.optim.Optimizer]:
            model = self.model()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            return Freezer(model, [GradualUnfreeze(["2", "0"])], optimizer, verbose=False), optimizer

        freezer, optimizer = run()
        freezer.epoch(1)
        state, saved = freezer.state_dict(), optimizer.state_dict()
        again, other = run()
        with pytest.raises(ResumeError, match="Load the state of the Freezer first"):
            other.load_state_dict(saved)
        again.load_state_dict(state)
        other.load_state_dict(saved)

    def test_a_policy_that_needs_a_trainer_is_refused_by_name(self) -> None:
        with pytest.raises(PlanError, match="FreezeAudit works through the hooks of a Trainer"):
            Freezer(self.model(), [FreezeAudit()])

    def test_a_schedule_in_fractions_needs_the_length_of_the_run(self) -> None:
        with pytest.raises(PlanError, match="total_steps"):
            Freezer(self.model(), [ProgressiveFreeze(["2", "0"])])
        freezer = Freezer(self.model(), [ProgressiveFreeze(["2", "0"])], total_steps=10, verbose=False)
        freezer.epoch(0)
        assert freezer.step(4).frozen == ()
        assert set(freezer.step(10).frozen) == {"0.weight", "0.bias"}

    def test_steps_that_are_never_counted_are_an_error_and_not_a_schedule_that_waits(self) -> None:
        freezer = Freezer(self.model(), [FreezeLayers("0", start=5, unit="step")], verbose=False)
        freezer.epoch(0)
        with pytest.raises(PlanError, match="step"):
            freezer.epoch(1)

    def test_a_metric_trigger_fires_by_what_it_is_shown(self) -> None:
        stages = GradualUnfreeze(["2", "0"], monitor="loss", patience=2)
        freezer = Freezer(self.model(), [stages], verbose=False)
        changes = []
        for epoch, loss in enumerate([1.0, 0.5, 0.6, 0.7, 0.8]):
            changes.append(freezer.epoch(epoch).unfrozen)
            freezer.validated({"loss": loss})
        assert changes == [(), (), (), (), ("0.weight", "0.bias")]
        with pytest.raises(PlanError, match="loss"):
            Freezer(self.model(), [stages], verbose=False).validated({"acc": 0.1})

    def test_a_stage_that_never_trained_is_warned_of_at_the_end(self) -> None:
        with (
            pytest.warns(UserWarning, match="never unfrozen: 0"),
            Freezer(self.model(), [GradualUnfreeze(["2", "0"])], verbose=False) as freezer,
        ):
            freezer.epoch(0)

    def test_the_table_and_each_change_are_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        with Freezer(self.model(), [GradualUnfreeze(["2", "0"])]) as freezer:
            freezer.epoch(0)
            freezer.epoch(1)
        said = capsys.readouterr().out
        assert re.search(r"^0 +epoch 1 ", said, flags=re.MULTILINE)
        assert "epoch 1, step 0: unfrozen 0" in said


def test_the_examples_run_in_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    plain_loop.main(epochs="2")
    fabric_loop.main(epochs="2")
    assert capsys.readouterr().out.count("epoch 1, step") >= 2


@pytest.mark.parametrize("script", ["plain_loop.py", "fabric_loop.py"])
def test_the_examples_run_in_two_processes(script: str, tmp_path: Path) -> None:
    strategy = "fsdp2" if SHARDS_ON_CPU else "ddp"
    run_ranks(script, "2", *([strategy] if script == "fabric_loop.py" else []))
