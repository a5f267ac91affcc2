"""Every block of the README runs as it stands."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lightning_freeze.cli import main

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_readme_has_the_blocks_that_are_tested_here() -> None:
    assert [kind for kind, _ in BLOCKS] == ["sh", "python", "python", "text", "sh"]


def test_the_first_example_trains_and_prints_what_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers and logging, which a first user sees too
        exec(compile(blocks("python")[1], "README.md", "exec"), {"__name__": "readme"})
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for line in blocks("text")[0].splitlines():
        assert line.rstrip() in printed or line.lstrip().startswith("──"), line


def test_the_three_lines_are_callbacks_of_a_trainer() -> None:
    namespace: dict[str, Any] = {}
    exec(compile(blocks("python")[0], "README.md", "exec"), namespace)
    assert len(Trainer(callbacks=namespace["callbacks"], logger=False, accelerator="cpu").callbacks) > 3


def test_the_readme_is_short_and_starts_with_the_installation() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 130
    extras = (README.parent / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in extras for extra in re.findall(r"\[(\w+),(\w+)\]", blocks("sh")[0])[0])
    assert text.index("## Install") < text.index("```python")


def test_the_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README.read_text()):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    stages, preview = blocks("sh")[1].splitlines()
    assert main(shlex.split(stages, comments=True)[1:]) == 0
    assert "layer4.1" in capsys.readouterr().out
    assert main(shlex.split(preview.replace("config.yaml", "missing.yaml"), comments=True)[1:]) == 2
