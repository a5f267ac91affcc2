"""A block of YAML is a config of LightningCLI, and its stages are those that were written."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_freeze import GradualUnfreeze, Stage
from lightning_freeze.stages.yaml_block import yaml_block

STAGES = [
    Stage("top", "head", factor=2.0, patience=0),
    Stage("body", ["re:model\\.layer[34]\\..*", "!model.layer4.0"], max_epochs=3),
]


def callback_of(text: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> GradualUnfreeze:
    path.write_text(text)
    monkeypatch.setattr("sys.argv", ["train.py"])  # LightningCLI warns of pytest's own arguments
    warnings.simplefilter("ignore")  # Lightning's advice on loggers
    cli = LightningCLI(
        BoringModel, run=False, args=["--config", str(path)], save_config_callback=None, seed_everything_default=False
    )
    return next(one for one in cli.trainer.callbacks if isinstance(one, GradualUnfreeze))


def test_the_block_is_read_back_as_the_same_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = yaml_block(STAGES).replace("every_n_epochs: 1", "monitor: val")
    read = callback_of(text, tmp_path / "config.yaml", monkeypatch).stages
    assert [stage if isinstance(stage, Stage) else Stage(**stage) for stage in read] == STAGES


def test_a_stage_in_yaml_takes_one_pattern_and_its_own_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [{"name": "top", "patterns": "head"}, {"name": "low", "patterns": "stem", "factor": 0.1}, "mid"]
    init = {"class_path": "lightning_freeze.GradualUnfreeze", "init_args": {"stages": stages}}
    text = yaml.safe_dump({"trainer": {"callbacks": [init]}})
    read = callback_of(text, tmp_path / "config.yaml", monkeypatch).stages
    assert [stage if isinstance(stage, str) else Stage(**vars(stage)) for stage in read] == [
        Stage("top", "head"), Stage("low", "stem", factor=0.1), "mid",
    ]  # fmt: skip
