"""`lightning-freeze cache`: what a folder of rows holds, and clearing it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_freeze.cache.folder import Folder
from lightning_freeze.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("model.encoder.layers.11", 3), ("stem", 2)):
        about = {"name": name, "model": "LitClassifier"}
        store = Folder(tmp_path, 1 << 20, persist=True).open((4, 2), torch.float32, (name * 2, True, about))
        assert store is not None
        store.put([(k, k) for k in range(rows)], torch.ones(rows, 4, 2), rows, 1, list(range(rows)))
        store.publish(valid=True)
        store.close()
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_rows_are_listed_with_what_they_are_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", str(folder)]) == 0
    title, *table = capsys.readouterr().out.splitlines()
    assert ": 5 rows, " in title
    told = " ".join("\n".join(table).split())
    assert "model.encoder.layers.11 LitClassifier 3" in told
    assert "4x2 float32" in told
    assert torch.__version__ in told
    assert "s ago" in told
    assert max(map(len, table)) <= 80


def test_clear_removes_rows_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", str(folder), "--clear"]) == 0
    assert "removed 5 rows" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert main(["cache", str(folder)]) == 0
    assert "no rows" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert "there is no such folder" in said
    assert "Traceback" not in said
