"""All ways to save and load of a strategy go through the slim form, once, and others see nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import lightning.pytorch.core.saving
import pytest
import torch
from torch import nn

from lightning_freeze import ResumeError
from lightning_freeze.model.first_bits import KEY
from lightning_freeze.trainer.slim import begin, slim_files, wrap_load_from_checkpoint


class Net(pl.LightningModule):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(4, 64), nn.Linear(64, 2)


def strategy(module: Any = None) -> Any:
    """Of a Trainer that has a module and no fit."""
    found = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False).strategy
    found._lightning_module = Net() if module is None else module
    return found


def checkpoint(module: Any) -> dict[str, Any]:
    return {"state_dict": module.state_dict(), "pytorch-lightning_version": pl.__version__}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Written after the head moved."""
    writing = strategy()
    begin(writing, slim_files(writing))
    with torch.no_grad():
        writing.lightning_module.head.weight += 1
    writing.save_checkpoint(checkpoint(writing.lightning_module), tmp_path / "slim.ckpt")
    return tmp_path / "slim.ckpt"


def test_twice_is_once() -> None:
    one = strategy()
    assert slim_files(one) is slim_files(one)
    assert slim_files(one) is not slim_files(strategy())


def test_what_had_not_moved_since_the_start_is_not_in_the_file(saved: Path) -> None:
    written = torch.load(saved, weights_only=True)
    assert set(written["state_dict"]) == {"head.weight"}
    assert set(written[KEY]["left_out"]) == {"body.weight", "body.bias", "head.bias"}


def test_before_the_start_is_known_files_are_full(tmp_path: Path) -> None:
    writing = strategy()
    slim_files(writing)
    writing.save_checkpoint(checkpoint(writing.lightning_module), tmp_path / "full.ckpt")
    assert KEY not in torch.load(tmp_path / "full.ckpt", weights_only=True)


def test_a_strategy_that_loads_one_knows_the_start_of_the_first_fit(saved: Path, tmp_path: Path) -> None:
    reading = strategy()
    files = slim_files(reading)
    loaded = reading.load_checkpoint(saved)
    assert list(loaded["state_dict"]) == list(Net().state_dict())
    reading.lightning_module.load_state_dict(loaded["state_dict"])
    begin(reading, files)  # of the resumed fit: the start is that of the first
    reading.save_checkpoint(checkpoint(reading.lightning_module), tmp_path / "second.ckpt")
    assert set(torch.load(tmp_path / "second.ckpt", weights_only=True)["state_dict"]) == {"head.weight"}
    begin(reading, files)  # of a fit after it: the start is now
    reading.save_checkpoint(checkpoint(reading.lightning_module), tmp_path / "third.ckpt")
    assert not torch.load(tmp_path / "third.ckpt", weights_only=True)["state_dict"]


def test_another_base_is_refused_where_it_is_loaded(saved: Path) -> None:
    reading = strategy(Net(seed=1))
    slim_files(reading)
    with pytest.raises(ResumeError, match=r"'body\.weight' of Net has other values now \(3 of 3 tensors differ\)"):
        reading.load_checkpoint(saved)


def test_load_from_checkpoint_fills_once_wrapped_and_leaves_the_class_alone(saved: Path) -> None:
    wrap_load_from_checkpoint()
    first = lightning.pytorch.core.saving._load_state
    wrap_load_from_checkpoint()
    assert lightning.pytorch.core.saving._load_state is first

    heard = []

    class Listening(Net):
        def on_load_checkpoint(self, loaded: dict[str, Any]) -> None:
            heard.append(set(loaded["state_dict"]))

    own = vars(Listening)["on_load_checkpoint"]
    found = Listening.load_from_checkpoint(saved)
    assert torch.equal(found.body.weight, Net().body.weight)
    assert torch.equal(found.head.weight, Net().head.weight + 1)
    assert heard == [set(Net().state_dict())]
    assert vars(Listening)["on_load_checkpoint"] is own
    Net.load_from_checkpoint(saved)
    assert "on_load_checkpoint" not in vars(Net)
    with pytest.raises(ResumeError, match="of Net has other values"):
        Net.load_from_checkpoint(saved, seed=1)
    assert "on_load_checkpoint" not in vars(Net)
