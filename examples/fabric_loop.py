"""A loop with Lightning Fabric: one process, DDP, or FSDP2.

python examples/fabric_loop.py
python examples/fabric_loop.py 3 ddp
python examples/fabric_loop.py 3 fsdp2

The arguments are epochs and strategy.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_freeze import Freezer, GradualUnfreeze, LayerwiseLR


def shard(model: nn.Module, mesh: Any) -> Any:
    for place in ("0", "2"):
        fully_shard(model.get_submodule(place), mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"])


def make_fabric(strategy: str) -> Fabric:
    if strategy == "fsdp2":
        sharded = ModelParallelStrategy(shard, data_parallel_size=2, tensor_parallel_size=1)
        return Fabric(accelerator="cpu", devices=2, strategy=sharded)
    return Fabric(accelerator="cpu", devices=2 if strategy == "ddp" else 1, strategy=strategy)


def main(epochs: str = "3", strategy: str = "auto") -> None:
    fabric = make_fabric(strategy)
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    model = fabric.setup_module(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)))
    optimizer: Any = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-2))
    policies = [GradualUnfreeze(["2", "0"]), LayerwiseLR(decay=0.5)]

    steps = 0
    with Freezer(model, policies, [optimizer]) as freezer:
        for epoch in range(int(epochs)):
            freezer.epoch(epoch)
            for _ in range(5):
                inputs, targets = torch.randn(32, 8), torch.randint(0, 2, (32,))
                optimizer.zero_grad()
                fabric.backward(nn.functional.cross_entropy(freezer.module(inputs), targets))
                optimizer.step()
                steps += 1
                freezer.step(steps)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer, "freezer": freezer}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(fabric.broadcast(folder), "last")
            fabric.save(path, state)
            fabric.load(path, state)
            fabric.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
