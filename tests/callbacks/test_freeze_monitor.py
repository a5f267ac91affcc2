"""FreezeMonitor: what it logs is what trains, and its picture is written however the run ends."""

from __future__ import annotations

import csv
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import STAGES, Batches, Net, Spy, fit, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_freeze import FreezeLayers, FreezeMonitor, GradualUnfreeze, LayerAdaptiveLR, LayerwiseLR, PlanError
from lightning_freeze.callbacks.freeze_monitor import _time
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.report import plot as picture
from lightning_freeze.report.timeline import Timeline
from lightning_freeze.schedule.moments import Progress


def adamw(net: Net) -> Any:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def gradual(**options: Any) -> list[Any]:
    return [GradualUnfreeze(STAGES, verbose=False, **options), LayerwiseLR(0.1)]


def logged(folder: Path, callbacks: list[Any], **options: Any) -> list[dict[str, float]]:
    fit(Net(adamw), callbacks, logger=CSVLogger(folder, "", ""), **{"log_every_n_steps": 1} | options)
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("freeze/unfrozen_stages")]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


class Norms(pl.Callback):
    """The gradient norm of a stage, computed apart."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: Net, optimizer: Any) -> None:
        gradients = [p.grad.flatten() for p in module.mid.parameters() if p.grad is not None]
        self.found.append(float(torch.cat(gradients).norm()) if gradients else 0.0)


def test_what_is_logged_is_what_trains_with_one_line_per_stage(tmp_path: Path) -> None:
    norms = Norms()
    rows = logged(tmp_path, [norms, FreezeMonitor(), *gradual()])
    assert [row["freeze/unfrozen_stages"] for row in rows] == [1, 1, 2, 2, 3, 3]
    assert [row["freeze/trainable_parameters"] for row in rows] == [15, 15, 39, 39, 63, 63]
    assert [row["freeze/lr/head"] for row in rows] == pytest.approx([1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3])
    assert [row["freeze/lr/mid"] for row in rows] == pytest.approx([0, 0, 5e-4, 5e-4, 2.5e-4, 2.5e-4])
    assert [row["freeze/lr/stem"] for row in rows] == pytest.approx([0, 0, 0, 0, 2.5e-5, 2.5e-5])
    assert [row["freeze/grad_norm/mid"] for row in rows] == pytest.approx(norms.found)
    assert [row["step"] for row in rows] == list(range(6))


class Used(pl.Callback):
    """The rate of each stage within the update itself."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        # torch calls it at the end of each update
        trainer.optimizers[0]._optimizer_step_code = lambda: self.rates.append({g["name"]: g["lr"] for g in groups})


def test_an_adaptive_rate_is_logged_as_the_step_used_it_with_clipped_gradients(tmp_path: Path) -> None:
    used = Used()
    adaptive = LayerAdaptiveLR("trust_ratio", stages=STAGES, max_factor=1e6, verbose=False)
    rows = logged(tmp_path, [FreezeMonitor(), adaptive, used], gradient_clip_val=1e-3)
    for stage in STAGES:
        assert [row[f"freeze/lr/{stage}"] for row in rows] == [rates[stage] for rates in used.rates]


def test_the_rate_of_a_step_has_its_warm_up(tmp_path: Path) -> None:
    rows = logged(tmp_path, [FreezeMonitor(), *gradual(warmup_steps=4)], steps=4)
    assert [row["freeze/lr/mid"] / row["freeze/lr/head"] for row in rows[4:8]] == pytest.approx(
        [0.025, 0.05, 0.075, 0.1]
    )


def test_it_logs_as_often_as_the_trainer_does_and_nothing_when_told_not_to(tmp_path: Path) -> None:
    assert len(logged(tmp_path / "some", [FreezeMonitor(), *gradual()], log_every_n_steps=2, steps=4)) == 6
    assert not logged(tmp_path / "none", [FreezeMonitor(log=False), *gradual(), LogsSomething()])


class LogsSomething(pl.Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        module.log("something", 1.0)


def test_stages_of_no_policy_are_one_line(tmp_path: Path) -> None:
    rows = logged(tmp_path, [FreezeMonitor(), FreezeLayers("stem", verbose=False)])
    assert {name for name in rows[0] if "lr" in name} == {"freeze/lr/rest"}


@pytest.mark.parametrize("name", ["run.png", "deeper/run.svg"])
def test_a_picture_is_written_at_the_end(tmp_path: Path, name: str) -> None:
    monitor = FreezeMonitor(plot=str(tmp_path / name))
    fit(Net(adamw, [1.0, 0.8, 0.9]), [monitor, *gradual()])
    written = (tmp_path / name).read_bytes()
    assert written.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    timeline = monitor._timeline
    assert timeline.stages == STAGES
    assert timeline.sizes == [15, 24, 24]
    assert timeline.metric == "val"
    assert timeline.values == [(1.0, 1.0), (2.0, pytest.approx(0.8)), (3.0, pytest.approx(0.9))]
    assert [(sample.time, sample.trainable) for sample in timeline.samples if sample.change] == [
        (0, 15),
        (1, 39),
        (2, 63),
    ]
    assert timeline.samples[-1].rates == pytest.approx([2.5e-3, 2.5e-4, 2.5e-5])
    assert timeline.end == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_picture_is_written_when_the_run_breaks_off(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(running: Any, _: Any) -> None:
        if running.global_step == 3:
            raise error("stop")

    monitor = FreezeMonitor(plot=str(tmp_path / "run.png"))
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        fit(Net(adamw), [*gradual(), Spy("on_train_batch_end", fail), monitor])
    assert (tmp_path / "run.png").exists()
    assert 1 < monitor._timeline.end < 2


def test_a_picture_that_cannot_be_written_neither_fails_the_run_nor_hides_its_error(tmp_path: Path) -> None:
    class Breaks(Net):
        def on_train_epoch_end(self) -> None:
            raise KeyError("of the run")

    (tmp_path / "run.png").mkdir()
    for net, ends in ((Net(adamw), nullcontext()), (Breaks(adamw), pytest.raises(KeyError, match="of the run"))):
        monitor = FreezeMonitor(plot=str(tmp_path / "run.png"))
        with pytest.warns(UserWarning, match="FreezeMonitor: the picture cannot be written to .*run.png"), ends:
            fit(net, [monitor, *gradual()])
        assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_has_the_picture_of_the_whole(tmp_path: Path) -> None:
    whole, part = (FreezeMonitor(plot=str(tmp_path / f"{name}.png")) for name in ("whole", "part"))
    keeper = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(Net(adamw, [3.0, 2.0, 1.0]), [whole, *gradual(), keeper], enable_checkpointing=True)
    trainer([part, *gradual()], 3).fit(Net(adamw, [1.0]), Batches(2), Batches(1), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert part._timeline.record() == whole._timeline.record()


def test_a_long_run_is_thinned_and_keeps_its_changes() -> None:
    net = Net()
    run = Reconciler(net, gradual(every_n_train_steps=700), [net.configure_optimizers()])
    timeline = Timeline()
    timeline.begin(run.view, "long")
    for step in range(5000):
        change = bool(run.reconcile(Progress(0, step)))
        timeline.add(run.view, run.updates.rates(), step / 100, step, change=change)
    assert len(timeline.samples) <= 800
    assert [sample.step for sample in timeline.samples if sample.change] == [0, 700, 1400]
    assert timeline.end == 49.99


def test_what_cannot_be_drawn_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match=r"plot='run.txt' must be the path of a .png, .svg, .pdf file"):
        FreezeMonitor(plot="run.txt")
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"needs matplotlib, which is not installed.\n  pip install"):
        FreezeMonitor(plot="run.png")
    FreezeMonitor()


@pytest.mark.parametrize(("batches", "batch", "time"), [(1, 0, 2.0), (1, 1, 3.0), (4, 1, 2.25), (float("inf"), 7, 2.0)])
def test_time_is_in_epochs_with_the_part_of_the_present_one(batches: float, batch: int, time: float) -> None:
    assert _time(SimpleNamespace(num_training_batches=batches, current_epoch=2), batch) == time
