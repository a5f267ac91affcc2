"""ProgressiveFreeze: by the clock at the rates of FreezeOut, by the gradient as AutoFreeze decides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import STAGES, Batches, Net, NeverTrains, fit, moved, stages_training, tensors, trainer
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Adagrad, AdamW, NAdam, RMSprop

from lightning_freeze import FreezeMonitor, PlanError, ProgressiveFreeze
from lightning_freeze.schedule.convergence import GradientNorms, converged, percentile, relative_changes

MAKERS: dict[str, Any] = {
    "SGD": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda m: AdamW(m.parameters(), lr=0.05, weight_decay=0.1),
    "Adagrad": lambda m: Adagrad(m.parameters(), lr=0.05),
    "RMSprop": lambda m: RMSprop(m.parameters(), lr=0.01, momentum=0.9),
    "NAdam": lambda m: NAdam(m.parameters(), lr=0.05),
}
TOTAL = 20  # steps


class Zeroing(Net):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


class EachStep(pl.Callback):
    """The rate inside each update, as a part of the group's, and what moved."""

    def __init__(self) -> None:
        self.factors: list[dict[str, float]] = []
        self.moved: list[str] = []
        self.training: list[str] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        optimizer = trainer.optimizers[0]
        self.base = {group["name"]: float(group["lr"]) for group in optimizer.param_groups}

        def note() -> None:
            rates = {g["name"]: float(g["lr"]) / self.base[g["name"]] for g in optimizer.param_groups if g["params"]}
            self.factors.append(rates)

        optimizer._optimizer_step_code = note  # torch calls it at the end of each update

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.before = tensors(module)
        self.training.append(stages_training(trainer, module))

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        assert {float(g["lr"]) for g in trainer.optimizers[0].param_groups} == set(self.base.values())
        self.moved.append("".join(sorted({name[0] for name in moved(self.before, tensors(module))})))


def clock(step: int, end: int, curve: str) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / end)) if curve == "cosine" else 1 - step / end


@pytest.mark.parametrize("curve", ["cosine", "linear"])
@pytest.mark.parametrize("net", [Net, Zeroing])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_rates_fall_to_0_and_then_the_stage_is_frozen_for_good(make: Any, net: Any, curve: Any) -> None:
    steps = EachStep()
    callback = ProgressiveFreeze(STAGES, span=(0.3, 0.9), curve=curve, verbose=False)
    fit(net(make), [callback, steps], epochs=4, steps=5, limit_val_batches=0)
    ends = {"stem": 6, "mid": 12, "head": TOTAL}  # 0.3, 0.6 of the run; the head never freezes
    for step in range(TOTAL):
        expected = {name: clock(step, end, curve) for name, end in ends.items() if step < end}
        assert steps.factors[step] == pytest.approx(expected)
        assert steps.training[step] == steps.moved[step] == "".join(sorted(name[0] for name in expected))


def test_a_run_that_goes_on_longer_does_not_thaw_what_is_frozen(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [ProgressiveFreeze(STAGES, span=(0.3, 0.9), verbose=False), EachStep()]

    first = fit(Net(), callbacks(), epochs=2, steps=5, limit_val_batches=0)
    first.save_checkpoint(tmp_path / "end.ckpt")
    again = callbacks()
    longer = trainer(again, 8, limit_val_batches=0)
    longer.fit(Net(), Batches(5), Batches(1), ckpt_path=tmp_path / "end.ckpt")
    assert again[1].training == ["h"] * 30


class Settling(Net):
    """Gradients of these norms, by epoch: stem, mid, head."""

    def __init__(self, norms: list[list[float]]) -> None:
        super().__init__(MAKERS["SGD"])
        self.norms = norms

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for stage, norm in zip((self.stem, self.mid, self.head), self.norms[self.current_epoch], strict=True):
            gradients = [p.grad for p in stage.parameters() if p.grad is not None]
            for gradient in gradients:
                gradient.fill_(norm / math.sqrt(sum(each.numel() for each in gradients)))


def test_by_the_gradient_the_stages_next_to_the_input_freeze_when_they_have_settled() -> None:
    norms = [[1.0, 1.0, 1.0], [1.01, 1.5, 2.0], [1.01, 1.5, 2.0], [1.01, 1.51, 4.0], [1.01, 1.51, 4.0]]
    steps = EachStep()
    callback = ProgressiveFreeze(STAGES, span=(0.0, 1.0), metric="grad_norm", verbose=False)
    fit(Settling(norms), [callback, steps], epochs=5, steps=3, limit_val_batches=0)
    # 0.01, 0.5, 1.0: the stem; 0, 0: none is below the median of equals; 0.007, 1.0: the middle; the head never
    assert steps.training[::3] == ["hms", "hms", "hm", "hm", "h"]
    assert steps.factors[-1] == {"head": 1.0}


def test_who_asks_for_the_rates_between_steps_does_not_change_what_is_measured(tmp_path: Path) -> None:
    def norms(*others: Any) -> Any:
        callback = ProgressiveFreeze(STAGES, span=(0.0, 1.0), metric="grad_norm", verbose=False)
        fit(Net(), [callback, *others], epochs=2, steps=3, log_every_n_steps=1)
        return callback._norms.record()

    alone = norms()
    assert alone["before"]
    assert norms(FreezeMonitor(plot=str(tmp_path / "timeline.svg"))) == alone


@pytest.mark.parametrize(("span", "first"), [((0.0, 1.0), 2), ((0.5, 1.0), 3), ((0.0, 0.3), None)])
def test_decisions_fall_within_the_span(span: Any, first: int | None) -> None:
    steps = EachStep()
    callback = ProgressiveFreeze(STAGES, span, metric="grad_norm", verbose=False)
    norms = [[1.0, 1.5**k, 2.0**k] for k in range(5)]
    fit(Settling(norms), [callback, steps], epochs=5, steps=3, limit_val_batches=0)
    frozen = [epoch for epoch, training in enumerate(steps.training[::3]) if training != "hms"]
    assert (frozen[0] if frozen else None) == first


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=8), st.floats(0.1, 100))
def test_only_a_prefix_below_the_percentile_freezes_and_never_the_head(pairs: Any, share: float) -> None:
    before, now = map(list, zip(*pairs, strict=True))
    count = converged(before, now, share)
    changes = relative_changes(before, now)
    bound = percentile(changes, share)
    assert 0 <= count < len(pairs)
    assert all(change < bound for change in changes[:count])
    assert count == len(pairs) - 1 or changes[count] >= bound


def test_a_stage_without_gradients_is_not_taken_for_one_that_has_settled() -> None:
    assert converged([0.0, 1.0, 1.0], [0.0, 1.0, 2.0], 50) == 0
    assert converged([0.0, 0.0], [0.0, 0.0], 50) == 0
    assert converged([1.0, 1.0, 1.0], [math.inf, 1.0, 2.0], 50) == 0


def test_norms_count_once_for_an_update_that_asks_twice_and_not_when_it_overflowed() -> None:
    norms = GradientNorms()
    for step, value in [(0, 1.0), (0, 1.0), (1, 3.0), (2, math.inf)]:
        norms.add(torch.tensor([value, 1.0]), 7, step)
    assert norms.means() == [4 / 3, 2 / 3]
    assert GradientNorms.from_record(norms.record()).means() == norms.means()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curve": "exp"}, "curve must be one of"),
        ({"metric": "loss"}, "metric must be one of 'grad_norm'"),
        ({"span": (0.5, 0.5)}, "0 <= start < stop <= 1"),
        ({"percentile": 0}, "percentile must be greater than 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"ProgressiveFreeze.*{message}"):
        ProgressiveFreeze(**options)


def test_a_single_stage_and_a_run_without_end_are_refused() -> None:
    with pytest.raises(PlanError, match="there is one stage, 'head', and the head never freezes"):
        fit(NeverTrains(), [ProgressiveFreeze(["head"])])
    with pytest.raises(PlanError, match="this one has no end"):
        fit(NeverTrains(), [ProgressiveFreeze(STAGES)], epochs=-1)
