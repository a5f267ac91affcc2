"""Run by test_feature_cache_kept.py in real processes: a head is trained, with rows of other runs at hand or not."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from cached_models import Model, Rows, frozen

from lightning_freeze import FeatureCache

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
KILLED_AFTER = 45  # optimizer steps, of which an epoch has 20


class Kill(pl.Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)


def main(rows: str, report: str, how: str) -> None:
    pl.seed_everything(0, verbose=False)
    model = Model()
    if how.startswith("other"):
        with torch.no_grad():
            model.stem.layers[0].weight.mul_(1.5)  # type: ignore[operator]
    cache = [] if how.endswith("plain") else [FeatureCache("disk", rows, max_gb=0.01, persist=True, verbose=False)]
    kill = [Kill()] if how == "killed" else []
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = pl.Trainer(callbacks=[*cache, *frozen(), *kill], accelerator="cpu", devices=1, max_epochs=4, **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(Rows(rows=160), batch_size=8, shuffle=True))
    weights = torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])
    found = {"weights": weights.numpy().tobytes().hex(), "losses": model.losses, "work": sum(model.mid.seen)}
    Path(report).write_text(json.dumps(found))
