"""Run by test_auto_stages.py in real processes: stages from the first batch under DDP and FSDP2, against named ones."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from ddp_worker import Net as Plain
from helpers import TRUSTED
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from sharded_worker import Net as Sharded
from sharded_worker import RankLoader, whole
from torch import nn

from lightning_freeze import GradualUnfreeze, LayerwiseLR, Stage

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
EPOCHS = 4


class Uneven(Plain):
    """Rank 1 leaves a layer out in its first batch, and would see other stages."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_rank == 1 and len(self.optimizers().param_groups) == 1:  # not split yet: a look
            return nn.functional.cross_entropy(self.model[6](self.model[:3](batch[0])), batch[1])
        return super().training_step(batch, batch_idx)


class Bits(pl.Callback):
    def __init__(self) -> None:
        self.hashes: list[str] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        values = torch.cat([whole(value).detach().double().flatten() for value in module.state_dict().values()])
        self.hashes.append(hashlib.sha256(values.numpy().tobytes()).hexdigest())


def fit(build: Any, strategy: Any, stages: Any, folder: Path, ckpt_path: Any = None) -> Any:
    pl.seed_everything(0, verbose=False)
    gradual, bits = GradualUnfreeze(stages, verbose=False), Bits()
    saved = pl.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=2, strategy=strategy(),
        callbacks=[gradual, LayerwiseLR(0.5), bits, saved],
        logger=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(build(), RankLoader(), ckpt_path=ckpt_path, **TRUSTED)
    return gradual.signature, bits.hashes


CASES: dict[str, tuple[Any, Any]] = {
    "ddp": (Plain, lambda: DDPStrategy(process_group_backend="gloo")),
    "uneven": (Uneven, lambda: DDPStrategy(process_group_backend="gloo")),
    "fsdp2": (Sharded, lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)),
}


def main(place: str, *cases: str) -> None:
    folder = Path(place)
    for case in cases:
        build, strategy = CASES[case]
        found, auto = fit(build, strategy, "auto", folder / f"{case} auto")
        stages = [Stage(name, list(patterns)) for name, patterns in found]
        _, named = fit(build if case != "uneven" else Plain, strategy, stages, folder / f"{case} named")
        resumed, again = fit(
            build, strategy, "auto", folder / f"{case} again", folder / f"{case} auto" / "epoch=1.ckpt"
        )
        mine = {"found": found, "auto": auto, "named": named, "resumed": resumed, "again": again}
        sides: list[Any] = [None, None]
        dist.all_gather_object(sides, mine)
        if dist.get_rank() == 0:
            (folder / f"{case}.json").write_text(json.dumps(sides))


if __name__ == "__main__":
    main(*sys.argv[1:])
