"""`lightning-freeze merge`: a slim checkpoint and its config give a full one, and a wrong base is status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Net, fit

from lightning_freeze import FreezeLayers, SlimCheckpoint
from lightning_freeze.cli import main

CONFIG = "model:\n  class_path: helpers.Net\n  init_args: {metrics: []}\n"


@pytest.fixture
def slim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    running = fit(model := Net(), [FreezeLayers("stem", verbose=False), SlimCheckpoint()], epochs=1)
    running.save_checkpoint("slim.ckpt")
    torch.save(model.state_dict(), "expected.pt")
    return tmp_path / "slim.ckpt"


def test_a_full_checkpoint_is_written(slim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(slim), "--config", "config.yaml", "--out", "full.ckpt"]) == 0
    assert "full.ckpt: a full checkpoint, with 6 tensors of Net as it is built" in capsys.readouterr().out
    full, expected = torch.load("full.ckpt", weights_only=True), torch.load("expected.pt", weights_only=True)
    assert "stem.0.weight" not in torch.load(slim, weights_only=True)["state_dict"]
    assert full["state_dict"].keys() == expected.keys()
    assert all(torch.equal(value, full["state_dict"][name]) for name, value in expected.items())


def test_another_base_and_an_unreadable_file_are_user_errors(slim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.py").write_text(
        "import helpers, torch\nclass Other(helpers.Net):\n"
        "    def __init__(self):\n        super().__init__()\n        torch.nn.init.ones_(self.stem[0].weight)\n"
    )
    Path("other.yaml").write_text("model:\n  class_path: other.Other\n")
    assert main(["merge", str(slim), "--config", "other.yaml", "--out", "full.ckpt"]) == 2
    assert "'stem.0.weight' of Other has other values now (1 of 6 tensors differ)" in capsys.readouterr().err
    assert main(["merge", "config.yaml", "--config", "config.yaml", "--out", "full.ckpt"]) == 2
    assert "config.yaml cannot be read as a checkpoint" in capsys.readouterr().err
    assert not Path("full.ckpt").exists()
