"""Every block of the README runs as it stands."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path
from unittest import mock

import pytest
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_freeze.cli import main

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_readme_has_the_blocks_that_are_tested_here() -> None:
    assert [kind for kind, _ in BLOCKS] == ["sh", "python", "text", "yaml", "sh", "python"]


def test_the_first_example_trains_and_prints_what_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers and logging, which a first user sees too
        exec(compile(blocks("python")[0], "README.md", "exec"), {"__name__": "readme"})
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for line in blocks("text")[0].splitlines():
        assert line.rstrip() in printed or line.lstrip().startswith("──"), line


def test_the_plain_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[1], "README.md", "exec"), {"__name__": "readme"})
    stages, selected, groups = capsys.readouterr().out.splitlines()
    assert stages.startswith("['fc', ")
    assert selected == "['layer4.1.bn1.weight', 'layer4.1.bn1.bias', 'layer4.1.bn2.weight', 'layer4.1.bn2.bias']"
    assert groups.endswith("groups")


def test_the_yaml_is_a_config_of_lightning_cli(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        blocks("yaml")[0] + "  accelerator: cpu\n  logger: false\nseed_everything: 0\n"
    )
    with mock.patch("sys.argv", ["train.py", "--config", str(tmp_path / "config.yaml")]):
        trainer = LightningCLI(BoringModel, run=False, save_config_callback=None).trainer
    names = {type(callback).__name__ for callback in trainer.callbacks}
    assert {"GradualUnfreeze", "LayerwiseLR", "BatchNormEval"} <= names


def test_the_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    makefile = (README.parent / "Makefile").read_text()
    for line in blocks("sh")[0].splitlines():
        assert re.search(rf"^{line.split()[1]}:", makefile, flags=re.MULTILINE), line
    for line in blocks("sh")[1].splitlines():
        assert main(shlex.split(line)[1:]) == 0
    assert "layer4.1" in capsys.readouterr().out
