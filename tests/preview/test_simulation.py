"""`lightning-freeze preview`: what it says is what the run does, and what the run would fail on ends in status 2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Batches, trainer
from previewing import FREEZE, RATES, TASKS, UNFREEZE, code_in, config

from lightning_freeze import FreezeMonitor, GradualUnfreeze, LayerwiseLR
from lightning_freeze.cli import main
from lightning_freeze.preview.config import build, undisturbed
from lightning_freeze.preview.memory import state_per_element
from lightning_freeze.preview.simulation import preview


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return code_in(tmp_path_factory.mktemp("preview"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["preview", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["preview", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def test_it_is_what_the_run_does(folder: Path, tmp_path: Path) -> None:
    path = config(folder, UNFREEZE, RATES, model__scheduler="cycle", trainer__accumulate_grad_batches=2)
    foreseen = preview([path]).timeline
    monitor = FreezeMonitor(plot=str(tmp_path / "run.png"))
    with undisturbed([path]):
        built = build([path], adjust=lambda options: setattr(options, "accelerator", "cpu"))
    callbacks = [GradualUnfreeze(["head", "mid", "stem"], verbose=False), LayerwiseLR(0.1), monitor]
    running = trainer(callbacks, 4, accumulate_grad_batches=2, log_every_n_steps=1)
    running.fit(built.model, Batches(5), Batches(1))
    seen = {sample.step: (sample.rates, sample.trainable) for sample in monitor._timeline.samples}
    assert {step: seen[step] for step in range(12)} == {
        sample.step: (pytest.approx(sample.rates), sample.trainable) for sample in foreseen.samples
    }


def test_steps_are_counted_over_devices_windows_and_limits(folder: Path) -> None:
    for changes, steps in [
        ({"trainer__devices": 4}, 8),
        ({"trainer__devices": 2, "trainer__num_nodes": 2, "trainer__strategy": "ddp"}, 8),
        ({"trainer__limit_train_batches": 0.4}, 8),
        ({"trainer__limit_train_batches": 3}, 12),
        ({"trainer__accumulate_grad_batches": 2}, 12),
        ({"trainer__max_steps": 13}, 13),
        ({"data__batch_size": 20}, 8),
    ]:
        assert preview([config(folder, UNFREEZE, **changes)]).steps == steps, changes


def test_without_its_data_it_takes_the_length_that_it_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(folder, UNFREEZE, data__rows=False)
    assert "no such file: train.parquet\n  To go on without the data" in refused(capsys, "--config", path)
    assert "400 optimizer steps" in printed(capsys, "--config", path, "--steps-per-epoch", "100")
    stream = config(folder, UNFREEZE, data={"class_path": "previewed.Stream"})
    assert "has no length" in refused(capsys, "--config", stream)


def test_metric_triggers_fire_as_early_as_they_can(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = {"class_path": UNFREEZE["class_path"], "init_args": {"stages": ["head", "stem"], "monitor": "val"}}
    said = printed(capsys, "--config", config(folder, metric, trainer__max_epochs=9))
    assert re.search(r"epoch 0 +epoch 4\n", said)  # the first check is the best, three follow
    assert "it shows the earliest possible epochs" in said
    metric["init_args"] |= {"restore_best": True, "max_epochs_per_stage": 2}
    assert re.search(r"epoch 0 +epoch 2\n", printed(capsys, "--config", config(folder, metric)))


def test_a_plateau_is_left_alone_and_said_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "--config", config(folder, UNFREEZE, model__scheduler="plateau"))
    assert "ReduceLROnPlateau: its metric is assumed to go on improving" in said


def test_a_trial_run_may_end_before_its_schedule(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "--config", config(folder, UNFREEZE, trainer__fast_dev_run=True))
    assert "1 epochs, 1 optimizer steps" in said


# ---- what ends with status 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callbacks": [{**UNFREEZE, "init_args": {"stages": ["head", "neck"]}}]},
         r"pattern 'neck' matches none of the 8 parameters of Net"),
        ({"strategy": "deepspeed_stage_2"}, r"cannot work under DeepSpeedStrategy"),
        ({"strategy": "dpp"}, r"strategy 'dpp' is none of Lightning's: .*ddp"),
        ({"strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy",
                       "dict_kwargs": {"use_orig_params": False}}}, r"use_orig_params=False"),
        ({"strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy", "dict_kwargs": {"static_graph": True}},
          "callbacks": [TASKS]}, r"TaskFreeze cannot work with DDPStrategy\(static_graph=True\)"),
        ({"strategy": "fsdp", "devices": 2, "callbacks": [TASKS]}, r"with different data on different ranks"),
        ({"max_epochs": -1}, r"the run has no end"),
        ({"callbacks": []}, r"no callback of lightning_freeze"),
        ({"max_epocs": 3}, r"max_epocs"),
        ({"callbacks": [{**UNFREEZE, "init_args": {"stagess": "auto"}}]}, r"stagess"),
        ({"callbacks": [{**UNFREEZE, "init_args": {"at": [0, 3, 2]}}]}, r"must not decrease"),
        ({"callbacks": [{**UNFREEZE, "init_args": {"monitor": "val", "stages": 3}}], "limit_val_batches": 0},
         r"is checked after each validation, and this run has none"),
    ],
)  # fmt: skip
def test_what_the_run_would_fail_on_is_said_in_one_message(
    changes: dict[str, Any], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(folder, UNFREEZE, **{f"trainer__{name}": value for name, value in changes.items()})
    assert re.search(message, refused(capsys, "--config", path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_epochs": 2}, r"GradualUnfreeze: the run ends before its schedule does; never unfrozen: stem"),
        ({"callbacks": [{**FREEZE, "init_args": {"patterns": "stem", "start": 9}}]},
         r"the run ends before its schedule does, and stem was to be frozen from epoch 9 on"),
        ({"callbacks": [{**FREEZE, "init_args": {"patterns": "stem", "stop": 9}}]},
         r"the run ends before its schedule does, and stem was to be unfrozen in epoch 9"),
        ({"callbacks": [{**UNFREEZE, "init_args": {"monitor": "val", "patience": 3, "stages": ["head", "mid"]}}]},
         r"never unfrozen: mid"),
    ],
)  # fmt: skip
def test_what_the_run_would_only_warn_of_is_shown_without_an_error(
    changes: dict[str, Any], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(folder, UNFREEZE, **{f"trainer__{name}": value for name, value in changes.items()})
    assert main(["preview", "--config", str(path)]) == 0
    assert re.search(message, " ".join(capsys.readouterr().out.split()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__only_stem": True}, r"'mid\.0\.weight' \(5 parameters in all\) is trainable and in no group"),
        ({"model": {"class_path": "previewed.Broken"}}, r"division by zero"),
        ({"model": {"class_path": "previewed.Nett"}}, r"Nett"),
        ({"model": {"class_path": "nowhere.Net"}}, r"there is no module 'nowhere'"),
        ({"model": {"lr": 3}}, r"names no model.*\n.*--model pkg.mod:Model"),
        ({"model__rate": 3}, r"has no argument 'rate'"),
    ],
)
def test_what_is_wrong_with_the_model_is_said_in_one_message(
    changes: dict[str, Any], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = {"class_path": "lightning_freeze.FreezeLayers", "init_args": {"patterns": "stem.0", "stop": 1}}
    assert re.search(message, refused(capsys, "--config", config(folder, held, **changes)))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.AdamW(p), 8),
        (lambda p: torch.optim.SGD(p, 0.1), 0),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 4),
        (lambda p: torch.optim.Adam(p, amsgrad=True), 12),
        (lambda p: torch.optim.Adagrad(p), 4),
    ],
)
def test_optimizer_state_is_asked_of_the_optimizer(make: Any, expected: float) -> None:
    assert state_per_element(make([torch.nn.Parameter(torch.zeros(3))]), torch.float32) == expected
