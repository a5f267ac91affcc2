"""A module that shards itself in `configure_model` can be previewed, on the meta device too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml
from helpers import SHARDS_ON_CPU

from lightning_freeze.cli import main

pytestmark = pytest.mark.skipif(not SHARDS_ON_CPU, reason="FSDP2 on the CPU needs torch 2.7")
CODE = """
import torch
from helpers import Batches, Net as Base
from torch.distributed.fsdp import fully_shard


class Net(Base):
    def __init__(self, meta: bool = True, width: int = 8):
        super().__init__()
        self.stem = torch.nn.Linear(width, width)
        assert self.stem.weight.is_meta == meta

    def configure_model(self):
        for part in (self.stem, self.mid, self.head):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def train_dataloader(self):
        return Batches(2)
"""


def config(folder: Path, monkeypatch: pytest.MonkeyPatch, **arguments: object) -> str:
    monkeypatch.delitem(sys.modules, "sharding_net", raising=False)
    (folder / "sharding_net.py").write_text(CODE)
    strategy = {"data_parallel_size": arguments.pop("ways", 4), "tensor_parallel_size": 1}
    fit = {
        "model": {"class_path": "sharding_net.Net", "init_args": arguments},
        "trainer": {
            "accelerator": "cpu",
            "devices": 4,
            "max_epochs": 3,
            "strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": strategy},
            "callbacks": [
                {"class_path": "lightning_freeze.GradualUnfreeze", "init_args": {"stages": ["head", "mid", "stem"]}}
            ],
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(fit))
    return str(folder / "config.yaml")


def test_a_model_too_large_for_this_machine_is_planned_on_the_meta_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    width = 1 << 20  # 4.4 TB in float32
    assert main(["preview", "--config", config(tmp_path, monkeypatch, width=width), "--meta", "--world", "1,4"]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if ": total" in line]
    assert [row.split(": total")[0].strip() for row in rows] == ["1 process", "4 processes, DDP", "4 processes, FSDP2"]
    assert [row.split()[-2:] for row in rows] == [["13.2", "TB"], ["13.2", "TB"], ["3.3", "TB"]]  # with momentum
    assert not dist.is_initialized()


def test_without_meta_the_mesh_is_there_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "--config", config(tmp_path, monkeypatch, meta=False)]) == 0
    assert "on each of 4 processes" in capsys.readouterr().out


def test_sizes_that_are_not_the_number_of_processes_end_in_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "--config", config(tmp_path, monkeypatch, ways=3), "--meta"]) == 2
    assert "data_parallel_size=3 times tensor_parallel_size=1 must be the number of processes, 4" in (
        capsys.readouterr().err
    )
