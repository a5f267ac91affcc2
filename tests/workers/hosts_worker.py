"""Run by test_hosts.py: one rank of a job over several hosts, which can die, and goes on from its checkpoint."""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lightning_freeze import FreezeAudit, GradualUnfreeze
from lightning_freeze.trainer import session

WIDTH, STEPS, EPOCHS = 256, 4, 3
STAGES = ["head", "mid", "stem"]


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mid, self.head = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.wire: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.head(self.mid(self.stem(batch[0])).tanh()), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)

    def train_dataloader(self) -> Any:
        torch.manual_seed(1)
        rows = torch.utils.data.TensorDataset(torch.randn(8 * STEPS, WIDTH), torch.randn(8 * STEPS, WIDTH))
        return torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.wire.append(sent())

    def on_train_batch_end(self, *_: Any) -> None:
        self.wire[-1] = sent() - self.wire[-1]


def sent() -> int:
    """Bytes that this host has sent through interfaces other than loopback."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines if not line.strip().startswith("lo:"))


class Dies(pl.Callback):
    """Kill one rank, once for all launches of the job."""

    def __init__(self, folder: Path, how: str, rank: int) -> None:
        self.marker, self.how, self.rank = folder / "died", how, rank

    def die(self) -> None:
        if int(os.environ["RANK"]) == self.rank and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.how == "change" and trainer.current_epoch == 1:
            vars(session)["rebuild"] = lambda *_, **__: self.die()
        if self.how == "save" and trainer.current_epoch == 1:
            plugin: Any = trainer.strategy.checkpoint_io
            plugin.save_checkpoint = self.torn

    def torn(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        whole = Path(path).with_suffix(".whole")
        torch.save(checkpoint, whole)
        Path(path).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        whole.unlink()
        self.die()


def newest(folder: Path) -> str | None:
    """The last checkpoint that can be read."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem), reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError):
            continue
        return str(path)
    return None


def main(path: str, how: str = "", rank: str = "1") -> None:
    folder = Path(path)
    model = Model()
    saves = ModelCheckpoint(folder, "{step}", every_n_train_steps=STEPS, save_top_k=-1, auto_insert_metric_name=False)
    quiet: Any = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=int(os.environ["LOCAL_WORLD_SIZE"]), num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
        strategy=DDPStrategy(timeout=timedelta(seconds=90)), max_epochs=EPOCHS, num_sanity_val_steps=0,
        callbacks=[Dies(folder, how, int(rank)), saves, GradualUnfreeze(STAGES), FreezeAudit()], **quiet,
    )  # fmt: skip
    trainer.fit(model, ckpt_path=newest(folder))
    mine = torch.cat([value.detach().flatten() for value in model.parameters()])
    theirs = [torch.empty_like(mine) for _ in range(trainer.world_size)]
    dist.all_gather(theirs, mine)
    dist.barrier()
    if trainer.is_global_zero:
        report = {
            "apart": float(max((mine - other).abs().max() for other in theirs)),
            "weights": mine.numpy().tobytes().hex(),
            "wire": model.wire,
        }
        (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
