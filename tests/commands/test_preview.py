"""`lightning-freeze preview`: files, pictures, numbers of processes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from previewing import UNFREEZE, code_in, config

from lightning_freeze.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return code_in(tmp_path_factory.mktemp("command"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["preview", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["preview", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def test_files_that_are_no_configs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read: No such file" in refused(capsys, "--config", str(tmp_path / "none.yaml"))
    for content, message in [
        ("a: [", "is not valid YAML"),
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


def test_a_picture_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "--config", config(folder, UNFREEZE), "--plot", str(tmp_path / "plan.svg"))
    assert (tmp_path / "plan.svg").read_text().startswith("<?xml")
    said = refused(capsys, "--config", config(folder, UNFREEZE), "--plot", str(tmp_path / "nowhere" / "plan.png"))
    assert f"the folder {tmp_path / 'nowhere'} does not exist" in said
    assert not (tmp_path / "nowhere").exists()


def test_a_picture_that_cannot_be_written_is_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.svg").mkdir()
    said = refused(capsys, "--config", config(folder, UNFREEZE), "--plot", str(tmp_path / "plan.svg"))
    assert re.search(r"the picture cannot be written to .*plan.svg: Is a directory", said)


def test_modules_are_found_in_the_current_folder_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here_only.py").write_text("from helpers import Net")
    monkeypatch.chdir(tmp_path)
    path = config(folder, UNFREEZE, model={"class_path": "here_only.Net"})
    assert "4 epochs, 20 optimizer steps" in printed(capsys, "--config", os.path.relpath(path))


@pytest.mark.parametrize("worlds", ["1,x", "0", "-1", "1.5", "", "1,,2"])
def test_numbers_of_processes_have_to_be_numbers(worlds: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(folder, UNFREEZE)
    assert f"--world {worlds} must be numbers of processes with commas" in refused(
        capsys, "--config", path, f"--world={worlds}"
    )


def test_the_memory_of_so_many_processes_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "--config", config(folder, UNFREEZE), "--world", "1, 4")
    assert re.findall(r"(.*): total", said) == ["1 process", "4 processes, DDP", "4 processes, FSDP2"]
