"""RateGrowth: the rate of a step is the scheduler's, times a factor that grows from epoch to epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Batches, Net, fit, tensors, trainer
from torch import nn
from torch.optim.lr_scheduler import StepLR

from lightning_freeze import LayerwiseLR, PatternError, PlanError, RateGrowth


def smooth(make: Any) -> Net:
    """Without Dropout, so that the loop by hand sees the same gradients."""
    model = Net(make)
    model.stem[3], model.mid[3] = nn.Identity(), nn.Identity()
    return model


def sgd(model: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return [optimizer], [StepLR(optimizer, 2, 0.5)]


def by_hand(factors: list[float]) -> dict[str, torch.Tensor]:
    """Two steps an epoch; the stem at a factor of the rate, which halves after two epochs."""
    model = smooth(sgd)
    optimizer = torch.optim.SGD([{"params": [p], "name": name} for name, p in model.named_parameters()], lr=0.1)
    for epoch, factor in enumerate(factors):
        for batch in Batches(2).all:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * 0.5 ** (epoch // 2) * (factor if group["name"].startswith("stem") else 1.0)
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()
            optimizer.step()
    return tensors(model)


def assert_close(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, value in tensors(model).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, msg=name)


def test_each_step_has_the_factor_of_its_epoch_on_top_of_the_scheduler() -> None:
    fit(model := smooth(sgd), [RateGrowth("stem", start=1, initial=0.25, growth=2.0, verbose=False)], epochs=4)
    assert_close(model, by_hand([0.25, 0.25, 0.5, 1.0]))


@pytest.mark.parametrize(("limit", "last"), [(0.4, 0.4), (None, 8.0), (1.0, 1.0)])
def test_the_factor_grows_up_to_its_limit(limit: float | None, last: float) -> None:
    rate = RateGrowth("stem", start=2, initial=0.1, growth=2.0, limit=limit)
    assert [rate.factor(epoch) for epoch in (0, 2)] == [0.1, 0.1]
    assert rate.factor(3) == 0.2
    assert rate.factor(8) == pytest.approx(6.4 if limit is None else last)


def test_a_growth_below_one_decays() -> None:
    rate = RateGrowth("stem", initial=1.0, growth=0.5)
    assert [rate.factor(epoch) for epoch in range(3)] == [1.0, 0.5, 0.25]


def test_it_multiplies_the_factors_of_layers_beside_it() -> None:
    growth = RateGrowth("stem", start=0, initial=0.5, growth=1.0, verbose=False)
    fit(one := smooth(sgd), [growth, LayerwiseLR(multipliers={"stem": 0.5})], epochs=2)
    fit(other := smooth(sgd), [RateGrowth("stem", initial=0.25, growth=1.0, verbose=False)], epochs=2)
    assert_close(one, tensors(other))


def test_a_resumed_run_goes_on_at_its_rate(tmp_path: Path) -> None:
    growth = {"start": 1, "initial": 0.25, "verbose": False}
    fit(smooth(sgd), [RateGrowth("stem", **growth)], epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    resumed = smooth(sgd)
    trainer([RateGrowth("stem", **growth)], 4).fit(resumed, Batches(2), Batches(1), ckpt_path=tmp_path / "two.ckpt")
    assert_close(resumed, by_hand([0.25, 0.25, 0.5, 1.0]))


def test_the_table_says_when_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Net(), [RateGrowth("stem", start=1, initial=0.25)], epochs=1)
    assert "x0.25 in epoch 1, then x2 each epoch up to x1" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patterns": []}, "patterns is empty"),
        ({"start": -1}, "start must be"),
        ({"initial": 0}, "initial must be greater than 0, got 0"),
        ({"growth": -2}, "growth must be greater than 0, got -2"),
        ({"limit": 0}, "limit must be greater than 0, got 0"),
        ({"growth": "fast"}, "growth must be a finite number"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"RateGrowth: {message}"):
        RateGrowth(**({"patterns": "stem"} | options))


def test_a_pattern_that_matches_nothing_is_refused_at_setup() -> None:
    with pytest.raises(PatternError, match="RateGrowth: pattern 'trunk' matches none"):
        fit(Net(), [RateGrowth("trunk")])
