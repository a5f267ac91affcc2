"""Beside Lightning's own callbacks that write rates and weights: what is frozen stays, and factors stay factors."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from contract import ContractNet
from helpers import BEFORE_2_6, STAGES, Batches, Net, Spy, fit, moved, tensors, trainer
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging
from torch import nn

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.report.changes import change_line
from lightning_freeze.report.table import stages_table, start_table
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.trainer.averaging import _METHODS as METHODS

AVERAGES = [lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1)]
if hasattr(pl.callbacks, "WeightAveraging"):
    AVERAGES.append(lambda: pl.callbacks.WeightAveraging())


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("first", [True, False])
def test_averages_write_only_what_trains_and_keep_held_statistics(average: Any, first: bool) -> None:
    frozen = [FreezeLayers("mid", start=2, verbose=False), BatchNormEval("stem")]
    at_freezing = Spy("on_train_epoch_start", lambda _, net: tensors(net))
    callbacks = [average(), *frozen, at_freezing] if first else [*frozen, at_freezing, average()]
    fit(model := ContractNet(), callbacks, epochs=4)
    changed = moved(at_freezing.seen[2], tensors(model))
    assert changed == {"stem.0.weight", "stem.1.weight", "stem.1.bias", "head.weight", "head.bias"}
    assert model.stem[1].momentum == 0.1


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("raises", [False, True])
def test_after_a_fit_an_average_has_only_its_own_methods(average: Any, raises: bool) -> None:
    def fail(*_: Any) -> None:
        if raises:
            raise RuntimeError("fails at epoch 2")

    during = Spy("on_train_epoch_start", lambda run, _: [m for m in METHODS if m in vars(run.callbacks[0])])
    last = Spy("on_train_epoch_end", lambda run, _: fail() if run.current_epoch == 2 else None)
    callbacks = [one := average(), FreezeLayers("mid", verbose=False), during, last]
    with pytest.raises(RuntimeError, match="epoch 2") if raises else nullcontext():
        fit(ContractNet(), callbacks, epochs=4)
    assert all(during.seen)
    assert not set(vars(one)) & set(METHODS)
    assert type(copy.deepcopy(one)) is type(one)


class Late(LearningRateFinder):
    """Finds a rate at the start of the second epoch, and writes it where `lr_find` does.

    A stand-in: Lightning 2.6's own search comes back without a result there.
    """

    def on_fit_start(self, *_: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            self.optimal_lr = SimpleNamespace(suggestion=lambda: 0.03)
            pl_module.lr = 0.03
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = 0.03


@pytest.mark.skipif(BEFORE_2_6, reason="this Lightning writes what it found to the module only")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("finder", [LearningRateFinder, Late])
def test_a_found_rate_is_multiplied_by_the_factor_of_each_slot(finder: Any, tmp_path: Path) -> None:
    search = finder(num_training_steps=30, update_attr=True, early_stop_threshold=None)
    rates = Spy("on_train_batch_start", lambda running, _: [g["lr"] for g in running.optimizers[0].param_groups])
    plain = [LayerwiseLR(0.1, stages=STAGES), GradualUnfreeze(STAGES, verbose=False)]
    model = ContractNet()
    model.configure_optimizers = lambda: torch.optim.AdamW(model.parameters(), lr=model.lr)  # type: ignore[method-assign]
    trainer([*plain, rates, search], 3, default_root_dir=tmp_path).fit(model, Batches(32), Batches(1))
    found = search.optimal_lr.suggestion()
    assert model.lr == found != 0.01
    stem, mid, head = rates.seen[-1]
    assert (stem, mid, head) == pytest.approx((0.01 * found, 0.1 * found, found))


def line_at(run: Reconciler, epoch: int) -> str:
    done = run.reconcile(Progress(epoch, epoch))
    return change_line(run.view, done)


def test_a_part_of_a_stage_is_not_called_the_stage() -> None:
    net = Net()
    policies = [GradualUnfreeze(STAGES, every_n_epochs=1), FreezeLayers("mid.0", stop=3)]
    run = Reconciler(net, policies, [net.configure_optimizers()])
    run.reconcile(Progress())
    said = [line_at(run, epoch) for epoch in (1, 2, 3)]
    assert "unfrozen 2 of 3 tensors of mid;" in said[0]
    assert "unfrozen stem;" in said[1]
    assert "unfrozen 1 of 3 tensors of mid;" in said[2]


def test_a_norm_layer_that_is_registered_twice_is_counted_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.again, self.head = nn.Sequential(self.norm), nn.Linear(3, 3)

    model = Shared()
    run = Reconciler(model, [FreezeLayers("norm")], [torch.optim.SGD(model.parameters(), 0.1)])
    run.reconcile(Progress())
    assert "1 eval" in start_table(run.view)
    assert "2 eval" not in start_table(run.view)
    context = Context(model)
    assert stages_table(context, context.stages(["norm", "head"], "test")).splitlines()[3].split()[-1] == "1"


@pytest.mark.skipif(not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="an older Lightning")
def test_an_average_is_lightnings_where_all_trains_and_that_of_a_stage_begins_with_it() -> None:
    means, weights = (
        Spy("on_train_batch_end", lambda run, _: tensors(run.callbacks[0]._average_model.module)),
        Spy("on_train_batch_end", lambda _, net: tensors(net)),
    )
    plain = Spy("on_train_batch_end", lambda run, _: tensors(run.callbacks[0]._average_model.module))

    def ema() -> Any:
        return pl.callbacks.EMAWeightAveraging(decay=0.7)

    torch.manual_seed(3)
    fit(ContractNet(), [ema(), plain], limit_val_batches=0)
    torch.manual_seed(3)
    fit(ContractNet(), [ema(), LayerwiseLR(1.0, stages=STAGES), means], limit_val_batches=0)
    for one, other in zip(plain.seen, means.seen, strict=True):
        assert not moved(one, other)
    means.seen.clear()
    callbacks = [ema(), GradualUnfreeze(["head", "mid", "stem"], verbose=False), BatchNormEval("stem"), weights, means]
    fit(ContractNet(), callbacks, limit_val_batches=0)
    start = weights.seen[0]
    for step, (mean, now) in enumerate(zip(means.seen, weights.seen, strict=True)):
        for name in start:
            begun = step >= {"head": 0, "mid": 2, "stem": 4}[name.partition(".")[0]]
            if not begun or name.startswith("stem.1.running"):
                assert torch.equal(mean[name], now[name]), (step, name)
    third = "mid.0.weight"  # its first update: from the value that it was unfrozen with
    torch.testing.assert_close(means.seen[2][third], 0.7 * start[third] + 0.3 * weights.seen[2][third])


@pytest.mark.skipif(not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="an older Lightning")
def test_the_mean_of_what_is_frozen_is_its_value() -> None:
    means = Spy("on_train_batch_end", lambda run, _: tensors(run.callbacks[0]._average_model.module))
    weights = Spy("on_train_batch_end", lambda _, net: tensors(net))
    average = pl.callbacks.EMAWeightAveraging(decay=0.7)
    fit(ContractNet(), [average, FreezeLayers("mid", start=1, verbose=False), weights, means], limit_val_batches=0)
    behind = moved(means.seen[1], weights.seen[1])
    assert {"mid.0.weight", "head.weight"} <= behind  # while it trains, the mean lags
    behind = moved(means.seen[2], weights.seen[2])
    assert "head.weight" in behind
    assert not any(name.startswith("mid") for name in behind)


@pytest.mark.skipif(not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="an older Lightning")
def test_an_average_holds_and_saves_only_what_trains_on_top_of_the_model(tmp_path: Path) -> None:
    def nbytes(*states: dict[str, torch.Tensor]) -> int:
        storages = {value.untyped_storage().data_ptr(): value.nbytes for state in states for value in state.values()}
        return sum(storages.values())

    def more(run: Any, net: nn.Module) -> tuple[int, int]:
        run.save_checkpoint(path := tmp_path / "some.ckpt")
        saved, model = torch.load(path), dict(net.named_parameters())
        average = dict(run.callbacks[0]._average_model.module.named_parameters())
        states = [{name: saved[key][name] for name in model} for key in ("state_dict", "current_model_state")]
        return nbytes(model, average) - nbytes(model), nbytes(*states) - nbytes(model)

    seen = Spy("on_train_batch_end", more)
    callbacks = [pl.callbacks.EMAWeightAveraging(decay=0.7), GradualUnfreeze(["head", "mid", "stem"], verbose=False)]
    fit(model := ContractNet(), [*callbacks, seen], limit_val_batches=1)
    parts = [sum(p.nbytes for p in getattr(model, part).parameters()) for part in ("head", "mid", "stem")]
    assert seen.seen[::2] == [(sum(parts[: k + 1]),) * 2 for k in range(3)], "in memory, and in the file"


@pytest.mark.skipif(not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="an older Lightning")
def test_an_average_that_shares_tensors_never_writes_to_a_frozen_one() -> None:
    class Signed(ContractNet):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.mid[0].weight.fill_(-0.0)  # a running average would turn it into 0.0

    callbacks = [pl.callbacks.EMAWeightAveraging(decay=0.7), FreezeLayers("mid", verbose=False)]
    fit(model := Signed(), callbacks, epochs=2)
    assert bool(model.mid[0].weight.signbit().all())
