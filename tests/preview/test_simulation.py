"""`lightning-freeze preview`: what it says is what the run does, and what the run would fail on ends in status 2."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import Batches, trainer

from lightning_freeze import FreezeMonitor, GradualUnfreeze, LayerwiseLR
from lightning_freeze.cli import main
from lightning_freeze.preview.config import build, undisturbed
from lightning_freeze.preview.simulation import preview, state_per_element
from lightning_freeze.preview.text import text

# Beside the config, in a folder of its own: no data may be read, no batch made, no GPU asked for.
CODE = """
import lightning.pytorch as pl
import torch
from helpers import Net as Base


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        raise AssertionError("a batch was read")


class Net(Base):
    def __init__(self, lr: float = 0.01, scheduler: str = "none", only_stem: bool = False):
        super().__init__()
        self.lr, self.scheduler, self.only_stem = lr, scheduler, only_stem

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW((self.stem if self.only_stem else self).parameters(), lr=self.lr)
        if self.scheduler == "cycle":
            steps = self.trainer.estimated_stepping_batches
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        if self.scheduler == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val"}}
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int = 8, rows: bool = True):
        super().__init__()
        self.batch_size, self.rows = batch_size, rows

    def prepare_data(self):
        raise AssertionError("data was downloaded")

    def train_dataloader(self):
        if not self.rows:
            raise FileNotFoundError("no such file: train.parquet")
        return torch.utils.data.DataLoader(Rows(), batch_size=self.batch_size, num_workers=4)

    val_dataloader = train_dataloader


class Stream(Data):
    def train_dataloader(self):
        class Endless(torch.utils.data.IterableDataset):
            def __iter__(self):
                raise AssertionError("a batch was read")

        return torch.utils.data.DataLoader(Endless())


class Broken(Net):
    def __init__(self):
        super().__init__()
        1 / 0
"""
FREEZE = {"class_path": "lightning_freeze.FreezeLayers"}
UNFREEZE = {"class_path": "lightning_freeze.GradualUnfreeze", "init_args": {"stages": ["head", "mid", "stem"]}}
TASKS = {"class_path": "lightning_freeze.TaskFreeze", "init_args": {"tasks": {"one": ["mid"]}}}
RATES = {"class_path": "lightning_freeze.LayerwiseLR", "init_args": {"decay": 0.1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("preview")
    (place / "previewed.py").write_text(CODE)
    return place


def config(folder: Path, *callbacks: Any, **changes: Any) -> str:
    options: dict[str, Any] = {
        "trainer": {"max_epochs": 4, "accelerator": "gpu", "callbacks": list(callbacks)},
        "model": {"class_path": "previewed.Net"},
        "data": {"class_path": "previewed.Data"},
    }
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if not name:
            options[part] = value
        elif part == "trainer":
            options[part][name] = value
        else:
            options[part].setdefault("init_args", {})[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    return str(folder / "config.yaml")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["preview", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["preview", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def test_stage_by_time_with_rates_sizes_and_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "--config", config(folder, UNFREEZE, RATES))
    assert "4 epochs, 20 optimizer steps, AdamW" in said
    assert re.search(r"epoch 0 +epoch 1 +epoch 2\n", said)
    assert re.search(r"step 0 +step 5 +step 10\n", said)
    assert re.search(r"head +1 +1\.00e-02 +5\.00e-03 +2\.50e-03\n", said)
    assert re.search(r"mid +0\.1 +- +5\.00e-04 +2\.50e-04\n", said)
    assert re.search(r"stem +0\.01 +- +- +2\.50e-05\n", said)
    assert re.search(r"trainable +15 +39 +63\n", said)
    assert re.search(r"gradients +60 B +156 B +252 B\n", said)
    assert re.search(r"optimizer state +120 B +312 B +504 B", said)


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


def test_many_changes_are_shown_as_a_few_parts(folder: Path) -> None:
    windows = [{"patterns": "mid", "start": k, "stop": k + 1} for k in range(0, 40, 2)]
    freezes = [{"class_path": "lightning_freeze.FreezeLayers", "init_args": window} for window in windows]
    said = text(preview([config(folder, *freezes, trainer__max_epochs=40)]))
    assert said.partition("optimizer steps")[2].count("epoch ") < 15
    parts = re.search(r"epoch 0 +epoch ([\d.]+) +epoch ([\d.]+) ", said)
    assert parts is not None
    assert float(parts[2]) == pytest.approx(2 * float(parts[1]), abs=1)


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


def test_files_that_are_no_configs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read: No such file" in refused(capsys, "--config", str(tmp_path / "none.yaml"))
    for content, message in [
        ("a: [", "is no YAML"),
        ("a: !b", "with *, ? or ! need quotes"),
        ("- 1", "it holds a list"),
        ("", "it holds a NoneType"),
    ]:
        (tmp_path / "bad.yaml").write_text(content)
        assert message in refused(capsys, "--config", str(tmp_path / "bad.yaml"))
    assert "must be at least 1" in refused(capsys, "--config", "x.yaml", "--steps-per-epoch", "0")
    (tmp_path / "good.yaml").write_text("a: 1")
    good = str(tmp_path / "good.yaml")
    assert "must be the path of a" in refused(capsys, "--config", good, "--plot", "x.gif")


# ---- forms of configs


def test_options_override_and_a_script_s_own_classes_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(folder, UNFREEZE, model={"lr": 0.5}, data={"batch_size": 10})
    named = ["--model", "previewed:Net", "--data", "previewed:Data"]
    said = printed(capsys, "--config", path, *named, "--trainer.max_epochs=3", "--model.lr", "0.25")
    assert "3 epochs, 12 optimizer steps" in said
    assert "2.50e-01" in said
    assert "no attribute 'Nett'" in refused(capsys, "--config", path, "--model", "previewed:Nett")
    assert "there is no option '--nonsense=1'" in refused(capsys, "--config", path, *named, "--nonsense=1")


def test_options_may_stand_under_fit_and_in_several_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(config(folder, UNFREEZE))
    path.write_text(yaml.safe_dump({"fit": yaml.safe_load(path.read_text())}))
    (folder / "more.yaml").write_text("fit: {trainer: {max_epochs: 7}}")
    assert "7 epochs" in printed(capsys, "--config", str(path), "--config", str(folder / "more.yaml"))


def test_a_config_that_a_run_saved_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(config(folder, UNFREEZE, seed_everything=3, ckpt_path=None))
    assert "4 epochs" in printed(capsys, "--config", str(path))


def test_a_picture_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "--config", config(folder, UNFREEZE), "--plot", str(tmp_path / "plan.svg"))
    assert (tmp_path / "plan.svg").read_text().startswith("<?xml")


def test_a_picture_that_cannot_be_written_is_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.svg").mkdir()
    said = refused(capsys, "--config", config(folder, UNFREEZE), "--plot", str(tmp_path / "plan.svg"))
    assert re.search(r"the picture cannot be written to .*plan.svg: Is a directory", said)


def test_nothing_is_left_behind(folder: Path) -> None:
    before = sys.path[:], sys.argv, dict(os.environ), torch.random.get_rng_state()
    preview([config(folder, UNFREEZE, seed_everything=3)])
    assert (sys.path, sys.argv, dict(os.environ)) == before[:3]
    assert torch.equal(torch.random.get_rng_state(), before[3])


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


def test_modules_are_found_in_the_current_folder_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here_only.py").write_text("from helpers import Net")
    monkeypatch.chdir(tmp_path)
    path = config(folder, UNFREEZE, model={"class_path": "here_only.Net"})
    assert "4 epochs, 20 optimizer steps" in printed(capsys, "--config", os.path.relpath(path))
