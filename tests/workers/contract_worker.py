"""Run by test_contract.py in two real processes: each callback under DDP, every rank with the same batches."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from contract import ContractNet, Seeded, beside, exported
from helpers import trainer

from lightning_freeze import fingerprint


def train(name: str, folder: Path, **options: object) -> dict[str, int]:
    """Hashes of all weights after three epochs; (g + g) / 2 is g, bit for bit."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        running = trainer(
            [Seeded(), *beside(name)], 3, use_distributed_sampler=False, default_root_dir=folder, **options
        )
        running.fit(model := ContractNet())
    return fingerprint(model)


def main(folder: str) -> None:
    found = {name: train(name, Path(folder), strategy="ddp", devices=2) for name in exported()}
    rank = torch.distributed.get_rank()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
