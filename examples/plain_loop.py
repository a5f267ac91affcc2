"""A training loop of your own, with one process or several.

python examples/plain_loop.py
torchrun --nproc-per-node=2 examples/plain_loop.py

The loop is the same for both: `freezer.module` is what to call.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze import BatchNormEval, Freezer, GradualUnfreeze, LayerwiseLR


def main(epochs: str = "3") -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(epochs))
    policies = [GradualUnfreeze(["3", ["0", "1"]]), LayerwiseLR(decay=0.5), BatchNormEval()]

    steps = 0
    with Freezer(model, policies, [optimizer], [scheduler]) as freezer:
        for epoch in range(int(epochs)):
            freezer.epoch(epoch)
            for _ in range(5):
                inputs, targets = torch.randn(32, 8), torch.randint(0, 2, (32,))
                optimizer.zero_grad()
                loss: Any = nn.functional.cross_entropy(freezer.module(inputs), targets)
                loss.backward()
                optimizer.step()
                steps += 1
                freezer.step(steps)
            scheduler.step()
        save_and_load(freezer, optimizer)
    if dist.is_initialized():
        dist.destroy_process_group()


def save_and_load(freezer: Freezer, optimizer: torch.optim.Optimizer) -> None:
    """The Freezer's state goes into the checkpoint, and is loaded before the optimizer's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "last.pt")
        torch.save({"freezer": freezer.state_dict(), "optimizer": optimizer.state_dict()}, path)
        checkpoint = torch.load(path)
    freezer.load_state_dict(checkpoint["freezer"])
    optimizer.load_state_dict(checkpoint["optimizer"])


if __name__ == "__main__":
    main(*sys.argv[1:])
