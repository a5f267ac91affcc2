"""Run by test_slim_checkpoint.py in a real process: it is killed while it writes its third checkpoint."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from fsspec.implementations.local import LocalFileOpener
from lightning.pytorch.callbacks import ModelCheckpoint
from resuming import STAGES, Net, StatefulLoader

from lightning_freeze import GradualUnfreeze, SlimCheckpoint

torch.set_num_threads(1)
warnings.filterwarnings("ignore")


def train(folder: Path, *more: Any, ckpt_path: Any = None) -> pl.Trainer:
    callbacks = [GradualUnfreeze(STAGES, every_n_train_steps=5, verbose=False), SlimCheckpoint(), *more]
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        callbacks=callbacks, default_root_dir=folder, max_epochs=5, accelerator="cpu", enable_checkpointing=bool(more),
        **quiet,
    )  # fmt: skip
    trainer.fit(Net(), StatefulLoader(), ckpt_path=ckpt_path)
    return trainer


def main(folder: str) -> None:
    commit, saved = LocalFileOpener.commit, []

    def die_at_the_third(opener: Any) -> None:
        saved.append(opener.path)
        if len(saved) == 3:  # the bytes are written, and the file has not taken the place of the last one
            os.kill(os.getpid(), signal.SIGKILL)
        commit(opener)

    LocalFileOpener.commit = die_at_the_third
    train(Path(folder), ModelCheckpoint(folder, filename="last", enable_version_counter=False))
