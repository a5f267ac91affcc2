"""LayerwiseLR: a rate per stage under any scheduler; every torch scheduler: tests/laws/test_every_scheduler.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import STAGES, Net, Spy, fit

from lightning_freeze import GradualUnfreeze, LayerwiseLR, PlanError


def rates(trainer: Any, _: Any) -> dict[str, float]:
    return {group["name"]: round(group["lr"], 8) for group in trainer.optimizers[0].param_groups}


def cosine(net: Any) -> Any:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)]


def test_it_counts_by_the_stages_beside_it_and_the_scheduler_scales_all() -> None:
    seen = Spy("on_train_epoch_start", rates)
    fit(Net(cosine), [LayerwiseLR(0.5), GradualUnfreeze(STAGES, verbose=False), seen])
    assert seen.seen[0] == {"head": 0.1, "mid": 0.05, "stem": 0.025}
    assert seen.seen[2] == {"head": 0.001, "mid": 0.0005, "stem": 0.00025}


def test_own_stages_take_the_place_of_those_beside_it() -> None:
    seen = Spy("on_train_start", rates)
    fit(Net(), [LayerwiseLR(0.5, stages=["head", ["mid", "stem"]]), GradualUnfreeze(STAGES, verbose=False), seen])
    assert sorted(seen.seen[0].values()) == [0.05, 0.05, 0.1]


def test_stages_that_differ_beside_it_are_not_guessed_between() -> None:
    callbacks = [LayerwiseLR(0.5), GradualUnfreeze(["head", "mid"]), GradualUnfreeze(["stem", "head"])]
    with pytest.raises(PlanError, match=r"several GradualUnfreeze with different stages.*\n.*stages="):
        fit(Net(), callbacks)


def test_it_shows_its_own_stages_in_the_table_and_not_those_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Net(), [LayerwiseLR(0.5, stages=STAGES)], epochs=1)
    alone = capsys.readouterr().out
    assert all(stage in alone for stage in STAGES)
    fit(Net(), [LayerwiseLR(0.5), GradualUnfreeze(STAGES[:1])], epochs=1)
    beside = capsys.readouterr().out
    assert sum(line.startswith("head ") for line in beside.splitlines()) == 1


def test_two_of_them_multiply() -> None:
    seen = Spy("on_train_start", rates)
    fit(Net(), [LayerwiseLR(0.5, stages=STAGES), LayerwiseLR(multipliers={"stem": 0.1}), seen])
    assert min(seen.seen[0].values()) == pytest.approx(0.0025)
