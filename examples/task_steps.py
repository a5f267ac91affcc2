"""Which part of a two-task network is updated in which step: SGD and AdamW, a window of freezing, 1 or 2 processes.

    python examples/task_steps.py                                            # one process
    python examples/task_steps.py 2                                          # two, under DDP
    python examples/task_steps.py fit --config examples/task_steps.yaml      # from YAML

Batches of pictures and of names alternate. In one process each branch is updated in every second step, and the trunk in
all of them. In two, the step is of the tasks that either of them has a batch of, and both make the same one.
`FreezeLayers` freezes a branch for a window of steps.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from emoji_data import Batch, Emoji
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from two_tasks import TASKS, EmojiNet

from lightning_freeze import FreezeLayers, TaskFreeze

PARTS = ("see", "name_picture", "read", "name_word", "trunk")


class Alternating(Emoji):
    """A batch of pictures, one of names, and so on."""

    def train_dataloader(self) -> DataLoader[Batch]:
        batches = self.batches(slice(0, -400), 32, 0)
        in_turn = [[batch for batch in batches if batch["task"] == task] for task in TASKS]
        return DataLoader([batch for pair in zip(*in_turn, strict=True) for batch in pair], batch_size=None)  # type: ignore[arg-type]


class Count(L.Callback):
    """In how many steps each part moved, and how many steps the optimizer counts for it."""

    def __init__(self) -> None:
        self.moved = dict.fromkeys(PARTS, 0)
        self.counted: dict[str, int | None] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.before = {part: _weight(pl_module, part).detach().clone() for part in PARTS}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        for part in PARTS:
            self.moved[part] += int((_weight(pl_module, part) != self.before[part]).any())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for part in PARTS:
            state = trainer.optimizers[0].state[_weight(pl_module, part)]
            self.counted[part] = int(state["step"]) if "step" in state else None


def _weight(module: L.LightningModule, part: str) -> Tensor:
    return next(module.get_submodule(part).parameters())


def main(processes: int = 1, steps: int = 30) -> dict[str, Count]:
    """Train for `steps` steps with either optimizer, and print the counts; the reader is frozen for a third of them."""
    table = Table("", *PARTS, title=f"Steps of {steps} in which a part was updated, processes: {processes}")
    found = {}
    for optimizer in ("SGD", "AdamW"):
        L.seed_everything(0, verbose=False)
        count = found[optimizer] = Count()
        window = FreezeLayers("read", steps // 3, 2 * steps // 3, unit="step", verbose=False)
        trainer = L.Trainer(
            max_epochs=-1, max_steps=steps, callbacks=[TaskFreeze(TASKS, verbose=False), window, count],
            accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(EmojiNet(optimizer), Alternating())
        table.add_row(optimizer, *(str(count.moved[part]) for part in PARTS))
        if optimizer == "AdamW":
            table.add_row("AdamW's own count", *(str(count.counted[part]) for part in PARTS))
    if trainer.is_global_zero:
        Console().print(table)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "fit":
        LightningCLI(save_config_callback=None)  # the YAML names the model and the data
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
