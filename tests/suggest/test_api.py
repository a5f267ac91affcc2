"""The two doors: a config and a module."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_freeze import PlanError
from lightning_freeze.cli import main
from lightning_freeze.suggest import from_config, suggest

CONFIG = {
    "trainer": {
        "max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}],
    },
    "model": {"class_path": "digits_cnn.DigitNet", "init_args": {"width": 4}},
    "data": {"class_path": "digits_cnn.Digits"},
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.mark.usefixtures("few_runs")
def test_the_command_prints_a_block_that_lightning_cli_runs_as_it_is(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.yaml"
    assert main(["suggest", "--config", str(config), "--budget", "10", "--folds", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert out.read_text().strip() in printed
    block = yaml.safe_load(out.read_text())
    assert block["model"]["init_args"]["width"] == 4
    assert block["model"]["init_args"]["lr"] > 0
    assert block["trainer"]["callbacks"][0] == CONFIG["trainer"]["callbacks"][0]  # type: ignore[index]
    logged = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = LightningCLI(
            save_config_callback=None, args=["fit", "--config", str(config), "--config", str(out), *logged]
        )
    assert run.trainer.current_epoch == CONFIG["trainer"]["max_epochs"]  # type: ignore[index]
    assert len(run.trainer.callbacks) > 1


def test_a_budget_of_nothing_and_one_fold_are_errors(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suggest", "--config", str(config), "--budget", "0"]) == 2
    assert main(["suggest", "--config", str(config), "--folds", "1"]) == 2
    said = capsys.readouterr().err
    assert "--budget must be more than 0 minutes" in said
    assert "--folds must be at least 2" in said


def test_a_metric_that_is_not_logged_is_an_error(config: Path) -> None:
    with pytest.raises(PlanError, match="--monitor f1: validation logs val_loss, val_accuracy"):
        from_config([config], monitor="f1", progress=False)


def test_the_function_wants_a_length() -> None:
    from digits_cnn import DigitNet, Digits

    with pytest.raises(PlanError, match="the run has no length"):
        suggest(DigitNet(), Digits(), trainer={}, progress=False)
