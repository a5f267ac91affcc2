"""RotatingUnfreeze: so many stages at a time, the same for everybody, and state for no more than that."""

from __future__ import annotations

from collections import Counter
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import NeverTrains, fit, moved, tensors
from layered import Layered, running
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, NAdam, RMSprop

from lightning_freeze import GradualUnfreeze, LayerwiseLR, PlanError, RotatingUnfreeze
from lightning_freeze.engine.context import Context
from lightning_freeze.schedule.calendar import Calendar
from lightning_freeze.schedule.moments import Progress

FIVE = [f"layers.{k}" for k in (4, 3, 2, 1, 0)]  # the head first
MAKERS: dict[str, Any] = {
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.1),
    "Adagrad": lambda p: Adagrad(p, lr=0.05),
    "RMSprop": lambda p: RMSprop(p, lr=0.01, momentum=0.9),
    "NAdam": lambda p: NAdam(p, lr=0.05),
}


class Five(pl.LightningModule):
    """An embedding and five layers, all of one size."""

    def __init__(self, make: Any = None, set_to_none: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, 4, bias=False)
        self.layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
        self.make = make or MAKERS["AdamW"]
        self.set_to_none = set_to_none

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.layers(self.embed(batch[0])), batch[1])

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=self.set_to_none)


class EachStep(pl.Callback):
    """What moved in each step, by layer, and the bytes of optimizer state after it."""

    def __init__(self) -> None:
        self.moved: list[list[str]] = []
        self.held: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.before = tensors(module)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        names = moved(self.before, tensors(module))
        self.moved.append(sorted({name.rpartition(".")[0] for name in names}))
        states = trainer.optimizers[0].state.values()
        self.held.append(sum(v.numel() for s in states for v in s.values() if isinstance(v, torch.Tensor) and v.dim()))


def rotate(**options: Any) -> RotatingUnfreeze:
    return RotatingUnfreeze(FIVE, verbose=False, **{"every_n_train_steps": 2} | options)


def drawn(periods: int, **options: Any) -> list[tuple[int, ...]]:
    """Which places from the head train in each period."""
    callback = rotate(**options)
    callback.bind(Context(Five()))
    names = [{f"layers.{4 - place}.weight"} for place in range(5)]
    frozen = [callback.wants(Progress(0, 2 * k)).frozen for k in range(periods)]
    return [tuple(place for place in range(5) if not names[place] & each) for each in frozen]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_in_each_step_the_active_stages_move_and_hold_state_and_what_is_always_there(
    make: Any, set_to_none: bool
) -> None:
    steps = EachStep()
    fit(Five(make, set_to_none), [rotate(always="embed"), steps], epochs=3, steps=7, limit_val_batches=0)
    layers = drawn(11, always="embed")
    expected = [sorted(["embed", *(f"layers.{4 - place}" for place in layers[step // 2])]) for step in range(21)]
    assert steps.moved == expected
    assert len({tuple(each) for each in expected}) > 2
    assert len(set(steps.held)) == 1, "state is bounded by what is active"


@pytest.mark.parametrize("placement", ["keep", "cpu"])
def test_state_that_is_kept_comes_back_with_its_stage(placement: Any) -> None:
    steps: list[float] = []

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            state = trainer.optimizers[0].state.get(module.layers[0].weight)
            steps.append(float(state["step"]) if state else 0.0)

    callback = rotate(order="ascending", active=3, optimizer_state=placement)
    fit(Five(), [callback, Count()], epochs=1, steps=10, limit_val_batches=0)
    assert steps == [1, 2, 3, 4, 0, 0, 5, 6, 0, 0]


def test_orders_go_through_all_stages_and_round_again() -> None:
    assert drawn(6, order="descending") == [(0,), (1,), (2,), (3,), (4,), (0,)]
    assert drawn(6, order="ascending") == [(4,), (3,), (2,), (1,), (0,), (4,)]
    assert drawn(3, order="descending", active=2) == [(0, 1), (2, 3), (0, 4)]


def test_random_draws_depend_on_seed_and_period_alone_and_favour_none() -> None:
    assert drawn(50) == drawn(50) == drawn(80)[:50]
    assert drawn(50) != drawn(50, seed=1)
    counts = Counter(place for period in drawn(1000, active=2) for place in period)
    assert all(340 < counts[place] < 460 for place in range(5))
    assert all(len(period) == 2 for period in drawn(100, active=2))


def test_a_stage_that_is_always_there_does_not_take_part() -> None:
    assert {place for period in drawn(60, always=["layers.4", "layers.3.bias"]) for place in period} == {0, 1, 2, 3, 4}
    with pytest.raises(PlanError, match="active=5 stages are to train at a time, and there are 4 beside"):
        fit(NeverTrainsFive(), [rotate(active=5, always="layers.4")])


class NeverTrainsFive(Five, NeverTrains):
    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active": 0}, "active must be a whole number"),
        ({"every_n_train_steps": 0}, "every_n_train_steps must be"),
        ({"order": "up"}, "order must be one of 'random', 'ascending', 'descending'"),
        ({"optimizer_state": "gpu"}, "optimizer_state must be one of"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"eval_frozen": "no"}, "eval_frozen must be"),
        ({"thaw": 1}, "thaw must be"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"RotatingUnfreeze.*{message}"):
        RotatingUnfreeze(**options)


@pytest.mark.parametrize("eval_frozen", [True, False])
def test_frozen_modules_are_in_eval_mode_unless_told_otherwise(eval_frozen: bool) -> None:
    model = Layered()
    rotating = RotatingUnfreeze(["head", "layers", "stem"], order="descending", eval_frozen=eval_frozen)
    with running([rotating], model) as run:
        assert len(run.view.held) > 0 if eval_frozen else run.view.held == frozenset()
        assert model.layers[0][1].training != eval_frozen


def test_a_change_waits_for_the_end_of_an_accumulation_window() -> None:
    steps = EachStep()
    callbacks = [rotate(order="descending"), steps]
    fit(Five(), callbacks, epochs=1, steps=20, limit_val_batches=0, accumulate_grad_batches=2)
    assert steps.moved[1::2] == [[f"layers.{4 - step // 2}"] for step in range(10)]


def test_a_round_that_was_not_finished_is_reported_for_orders_that_have_rounds() -> None:
    with pytest.warns(UserWarning, match="3 of 5 stages never trained"):
        fit(Five(), [rotate(order="ascending")], epochs=1, steps=4, limit_val_batches=0)
    fit(Five(), [rotate()], epochs=1, steps=4, limit_val_batches=0)  # a warning would be an error


def test_rates_per_layer_and_other_stages_go_along() -> None:
    def rates(trainer: Any) -> dict[str, float]:
        return {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}

    running = fit(Five(), [rotate(always="embed"), LayerwiseLR(0.5, stages=FIVE)], epochs=1, limit_val_batches=0)
    assert rates(running) == {"always": 0.05} | {f"layers.{4 - k}": 0.05 * 0.5**k for k in range(5)}
    steps, beside = EachStep(), GradualUnfreeze([FIVE[:2], FIVE[2:]], every_n_epochs=1, verbose=False)
    fit(Five(), [rotate(order="ascending", always=FIVE[0]), beside, steps], epochs=2, steps=6, limit_val_batches=0)
    # 0, 1, 2 while these are still frozen, then 3, 0, 1
    assert steps.moved[:6] == [["layers.4"]] * 6
    assert steps.moved[6::2] == [["layers.3", "layers.4"], ["layers.0", "layers.4"], ["layers.1", "layers.4"]]


@pytest.mark.parametrize(("end", "missing"), [(10, 1), (11, 0)])
def test_a_round_that_will_not_be_finished_is_foreseen_where_the_length_is_known(end: int, missing: int) -> None:
    rotating = RotatingUnfreeze(["head", "layers", "stem"], every_n_train_steps=5, order="descending")
    with running([rotating]):
        said = rotating.foreseen(Progress(calendar=Calendar([(0, 10)], end)))
        assert len(said) == missing
        assert all(f"after {end} optimizer steps, before the first round does, with 1 of 3" in text for text in said)
        assert rotating.foreseen(Progress()) == []
