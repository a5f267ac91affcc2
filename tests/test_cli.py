"""The command line, and every callback from YAML through the real LightningCLI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from lightning_freeze import GradualUnfreeze, Stage
from lightning_freeze.cli import main


class Net(LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.model(batch[0]).square().mean()

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 2)), batch_size=4)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  max_epochs: 3
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks:
    - class_path: lightning_freeze.GradualUnfreeze
      init_args:
        stages: [model.2, [model.0, "!model.0.bias"], {name: rest, patterns: [model.1, model.0.bias]}]
        at: [0, 1, 2]
        warmup_steps: 2
    - class_path: lightning_freeze.LayerwiseLR
      init_args:
        decay: 0.5
        multipliers: {"model.0.*": 0.1}
    - class_path: lightning_freeze.BatchNormEval
      init_args: {when: frozen}
    - class_path: lightning_freeze.FreezeLayers
      init_args: {patterns: model.1.bias, stop: 2}
"""


def cli(folder: Path, config: str, *arguments: str) -> LightningCLI:
    (folder / "config.yaml").write_text(config)
    with mock.patch("sys.argv", ["train.py", *arguments, "--config", str(folder / "config.yaml")]):
        return LightningCLI(Net, save_config_callback=None)


def test_every_callback_trains_from_yaml(tmp_path: Path) -> None:
    run = cli(tmp_path, CONFIG, "fit")
    gradual = next(callback for callback in run.trainer.callbacks if isinstance(callback, GradualUnfreeze))
    assert gradual.at == [0, 1, 2]
    assert all(isinstance(start, int) for start in gradual.at)
    assert gradual.stages[2] == Stage("rest", ["model.1", "model.0.bias"])
    groups = {group["name"]: group["lr"] for group in run.trainer.optimizers[0].param_groups}
    assert groups["model.2"] == 0.1
    assert any(rate == pytest.approx(0.01) for rate in groups.values())


def test_a_config_survives_print_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli(tmp_path, CONFIG, "fit", "--print_config")
    printed = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        cli(tmp_path, printed, "fit", "--print_config")
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("class_path: lightning_freeze.FreezeLayers\n      init_args: {pattern: model.0}", "pattern"),
        ("class_path: lightning_freeze.FreezeLayer\n      init_args: {patterns: model.0}", "FreezeLayer"),
        ("class_path: lightning_freeze.GradualUnfreeze\n      init_args: {mode: least}", "mode"),
    ],
)
def test_a_wrong_config_is_refused_by_name_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, message: str
) -> None:
    head = CONFIG.partition("    - class_path")[0]
    with pytest.raises(SystemExit, match="2"):
        cli(tmp_path, f"{head}    - {wrong}\n", "fit")
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "LayerwiseLR\n      init_args: {decay: 1.5}",
            "LayerwiseLR: decay must be greater than 0 and at most 1, got 1.5",
        ),
        ("GradualUnfreeze\n      init_args: {at: [0, 2.0]}", "all of it are fractions of the run"),
    ],
)
def test_what_a_constructor_refuses_is_in_the_message_of_the_cli(tmp_path: Path, wrong: str, message: str) -> None:
    head = CONFIG.partition("    - class_path")[0]
    with pytest.raises(ValueError, match=message):
        cli(tmp_path, f"{head}    - class_path: lightning_freeze.{wrong}\n", "fit")


def test_stages_lists_the_stages_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stages", "torchvision:resnet18", "--input", "1x3x32x32"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ResNet: 10 stages, 11,689,512 parameters, head first")
    assert re.search(r"fc +513,000 +4\.4% +-", printed)
    assert printed.index("layer4.1") < printed.index("layer4.0") < printed.index("conv1")


def test_a_model_without_parameters_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stages", "torch.nn:ReLU"]) == 0
    assert capsys.readouterr().out.startswith("ReLU: 0 stages, 0 parameters")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "not of the form"),
        (["torchvision:resnet9000"], "resnet9000"),
        (["nowhere.at.all:thing"], "nowhere"),
        (["collections:OrderedDict"], "not a torch.nn.Module"),
        (["torchvision:resnet18", "--input", "big"], "is not a shape"),
        (["torchvision:resnet18", "--input", "1x4"], "raised RuntimeError"),
        (["torchvision:resnet18", "--input", "999999999x999999"], "--input 999999999x999999 cannot be made"),
        (["torchvision:resnet18", "--max-stages", "0"], "at least 1"),
    ],
)
def test_a_user_error_ends_with_status_2_and_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stages", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_trainer_accepts_the_callbacks_by_class() -> None:
    assert Trainer(callbacks=[GradualUnfreeze()], logger=False, enable_checkpointing=False, accelerator="cpu").callbacks
