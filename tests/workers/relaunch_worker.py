"""Run by test_relaunch.py in real processes: one run under DDP, whole, killed within an epoch, or resumed."""

from __future__ import annotations

import copy
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from resuming import STAGES, Net, StatefulLoader, everything
from sharded_worker import RankLoader

from lightning_freeze import FreezeAudit, FreezeLayers, FreezeMonitor, GradualUnfreeze, LayerwiseLR

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
KILLED_AFTER = 10  # optimizer steps: the third of the four of an epoch


class Kill(pl.Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == KILLED_AFTER:
            trainer.strategy.barrier()
            os.kill(os.getpid(), signal.SIGKILL)


class Start(pl.Callback):
    """What trains at each step, and what a run begins with."""

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}
        self.trainable: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.begun = copy.deepcopy(everything(trainer))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.trainable.append((trainer.global_step, sum(p.requires_grad for p in pl_module.parameters())))


CASES: dict[str, Any] = {
    "metric": lambda: [
        GradualUnfreeze(STAGES, monitor="val", mode="max", patience=1, restore_best=True, verbose=False)
    ],
    "mixed": lambda: [
        GradualUnfreeze(STAGES, every_n_train_steps=5, warmup_steps=4, verbose=False),
        LayerwiseLR(0.5),
        FreezeLayers("model.6.bias", 2, 4),
    ],
    "watched": lambda: [*CASES["mixed"](), FreezeAudit(), FreezeMonitor(plot="run.svg")],
}


def main(folder: str, processes: str, mode: str, *cases: str) -> None:
    for case in cases:
        train(folder, processes, mode, case)


def train(folder: str, processes: str, mode: str, case: str) -> None:
    place = Path(folder) / (case if mode != "whole" else f"{case}-whole")
    keeper = pl.callbacks.ModelCheckpoint(
        place, filename="{step}", save_top_k=-1, every_n_train_steps=3, save_last=True
    )
    start = Start()
    trainer = pl.Trainer(
        callbacks=[*CASES[case](), keeper, start, *([Kill()] if mode == "killed" else [])],
        strategy="ddp", devices=int(processes), accelerator="cpu", max_epochs=6, use_distributed_sampler=False,
        default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    validation = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(StatefulLoader().inputs, StatefulLoader().targets), batch_size=8
    )
    resumed = place / "last.ckpt" if mode == "resumed" else None
    trainer.fit(Net(), RankLoader(), validation, ckpt_path=resumed)
    if trainer.is_global_zero:
        found = {"begun": start.begun, "trainable": start.trainable, "end": everything(trainer)}
        torch.save(found, Path(folder, f"{case}-{mode}-{processes}.pt"))
