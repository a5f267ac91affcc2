"""Run by test_audit_ranks.py in two real processes: what FreezeAudit says on each rank, as text."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from helpers import SHARDS_ON_CPU, Batches
from lightning.pytorch.strategies import ModelParallelStrategy
from sharded_worker import Net as Sharded
from torch import nn

from lightning_freeze import FreezeAudit, FreezeLayers, FreezeViolation, GradualUnfreeze
from lightning_freeze.model.dtensors import local_part

STAGES = ["model.6", "model.3", ["model.0", "model.1", "model.4"]]


class Net(Sharded):
    """Of sharded_worker.py; on Batches, and whole under DDP."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(torch.cat([batch[0], batch[0][:, :2]], 1)), batch[1])

    validation_step = None


class Write(pl.Callback):
    """On one rank, in the second epoch."""

    def __init__(self, name: str, rank: int) -> None:
        self.name, self.rank = name, rank

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.current_epoch == 1 and trainer.global_rank == self.rank:
            local_part(dict(module.named_parameters())[self.name].detach()).mul_(1.5)


CASES: dict[str, tuple[str, list[Any]]] = {
    "ddp, right": ("ddp", []),
    "ddp, frozen on rank 1": ("ddp", [Write("model.0.weight", 1)]),
    "ddp, trainable on rank 1": ("ddp", [Write("model.6.weight", 1)]),
}
if SHARDS_ON_CPU:
    CASES["fsdp, right"] = "fsdp", []
    CASES["fsdp, frozen on rank 1"] = "fsdp", [Write("model.0.weight", 1)]


def main(folder: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for case, (strategy, others) in CASES.items():
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        schedule = GradualUnfreeze(STAGES, every_n_epochs=2, verbose=False)
        proof = FreezeAudit(verbose=False)
        sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, max_epochs=6, use_distributed_sampler=False, default_root_dir=folder,
            strategy=sharded if strategy == "fsdp" else "ddp",
            callbacks=[schedule, FreezeLayers("model.0.bias", 3, 5), proof, *others], **quiet,
        )  # fmt: skip
        try:
            trainer.fit(Net(shard=strategy == "fsdp"), Batches(2))
            said = f"{proof.audits} audits"
        except FreezeViolation as violation:
            said = str(violation)
        Path(folder, f"{case}-{trainer.global_rank}.txt").write_text(said)
