"""Run by test_savings_ddp.py in real processes: the cache, and torch.compile, under DDP."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from cached_models import Model, Rows, frozen, gradual

from lightning_freeze import FeatureCache
from lightning_freeze.trainer.session import session_of

torch.set_num_threads(1)
warnings.filterwarnings("ignore")


def compiled() -> Model:
    model = Model()
    model.stem.compile(backend="eager")
    model.mid.compile(backend="eager")
    return model


CASES: dict[str, Any] = {
    "plain": lambda folder: (Model(), frozen()),
    "memory": lambda folder: (Model(), [FeatureCache(), *frozen()]),
    "disk": lambda folder: (Model(), [FeatureCache("disk", str(folder / "rows"), max_gb=0.01), *frozen()]),
    "views": lambda folder: (Model(), [FeatureCache(views=2), *frozen()]),
    "gradual": lambda folder: (Model(), gradual()),
    "gradual cached": lambda folder: (Model(), [FeatureCache("disk", str(folder / "rows"), 0.01), *gradual()]),
    "compiled": lambda folder: (compiled(), gradual()),
    "compiled whole": lambda folder: (torch.compile(Model(), backend="eager"), gradual()),
}


class Files(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder, self.most, self.rows = folder, 0, set[bytes]()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rows.update(row.numpy().tobytes() for row in batch[0])
        self.most = max(self.most, len(list(self.folder.glob("*/*/*.rows"))))


def main(path: str) -> None:
    folder = Path(path)
    for case, make in CASES.items():
        pl.seed_everything(0, verbose=False)
        model, callbacks = make(folder)
        files = Files(folder / "rows")
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        trainer = pl.Trainer(
            callbacks=[*callbacks, files], accelerator="cpu", strategy="ddp", devices=2, max_epochs=6,
            num_sanity_val_steps=0, default_root_dir=str(folder), **quiet,
        )  # fmt: skip
        given, model = model, getattr(model, "_orig_mod", model)
        trainer.fit(given, torch.utils.data.DataLoader(Rows(case == "views", rows=64), batch_size=8, shuffle=True))
        weights = torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])
        mine = torch.cat([value.detach().flatten() for value in model.parameters()])  # buffers are each rank's own
        theirs = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(theirs, mine)
        work = torch.tensor([sum(model.stem.seen), sum(model.mid.seen)])
        dist.all_reduce(work)
        rows: list[Any] = [None, None]
        dist.all_gather_object(rows, files.rows)
        dist.barrier()
        if trainer.is_global_zero:
            assert session_of(trainer) is not None
            report = {
                "apart": float((theirs[0] - theirs[1]).abs().max()),
                "weights": weights.numpy().tobytes().hex(),
                "losses": model.losses,
                "work": work.tolist(),
                "rows": len(rows[0] | rows[1]),
                "files": files.most,
                "left": len(list((folder / "rows").glob("*"))),
            }
            (folder / f"{case}.json").write_text(json.dumps(report))
