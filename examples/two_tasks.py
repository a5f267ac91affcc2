"""One network, two tasks, two inputs: emoji by their picture and by their name, in batches of one task each.

    python examples/two_tasks.py                                             # with TaskFreeze and without
    python examples/two_tasks.py fit --config examples/two_tasks.yaml        # with it, from YAML

The network leaves zeros in gradients (`zero_grad(set_to_none=False)`), as code that wants its gradients in one place
does. Without TaskFreeze, AdamW then moves the branch of the names in steps on pictures as well, and vice versa.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
import torch
from emoji_data import CLASSES, PIECES, SIDE, Batch, Emoji
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_freeze import TaskFreeze

TASKS: dict[str, str | list[str]] = {"pictures": ["see", "name_picture"], "names": ["read", "name_word"]}


class EmojiNet(L.LightningModule):
    """A branch that sees and one that reads, a trunk for both, and a head for each; AdamW or SGD with momentum."""

    def __init__(self, optimizer: str = "AdamW") -> None:
        super().__init__()
        self.optimizer = optimizer
        conv = [nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(64)]
        self.see, self.read = nn.Sequential(*conv), nn.Linear(PIECES, 64)
        self.trunk = nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.name_picture, self.name_word = nn.Linear(64, CLASSES), nn.Linear(64, CLASSES)
        self.see(torch.zeros(1, 3, SIDE, SIDE))

    def forward(self, batch: Batch) -> Tensor:
        see = batch["task"] == "pictures"
        hidden = self.trunk((self.see if see else self.read)(batch["x"]))
        logits: Tensor = (self.name_picture if see else self.name_word)(hidden)
        return logits

    def training_step(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self(batch), batch["y"])

    def validation_step(self, batch: Batch) -> None:
        right = (self(batch).argmax(1) == batch["y"]).float().mean()
        self.log(f"{batch['task']}_accuracy", right, batch_size=len(batch["y"]))

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "SGD":
            return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)


class Watch(L.Callback):
    """How far each branch has moved, in all, in steps on batches of the other task."""

    def __init__(self) -> None:
        self.strayed = dict.fromkeys(TASKS, 0.0)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.other = next(task for task in TASKS if task != batch["task"])
        head = pl_module.name_picture if self.other == "pictures" else pl_module.name_word
        self.head, self.before = head, head.weight.detach().clone()

    def on_train_batch_end(self, *_: Any) -> None:
        self.strayed[self.other] += float((self.head.weight.detach() - self.before).abs().max())


def main(epochs: int = 8, steps: int | None = None) -> dict[str, dict[str, float]]:
    """Train with TaskFreeze and without, and print accuracies and what strayed."""
    table = Table("", *(f"{task}: accuracy" for task in TASKS), *(f"{task}: moved by the other" for task in TASKS))
    found = {}
    for name, callbacks in {"without": [], "TaskFreeze": [TaskFreeze(TASKS, verbose=False)]}.items():
        L.seed_everything(0, verbose=False)
        watch = Watch()
        trainer = L.Trainer(
            max_epochs=epochs, limit_train_batches=steps, callbacks=[*callbacks, watch], accelerator="cpu",
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(EmojiNet(), Emoji())
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        found[name] = metrics | {f"{task}_strayed": watch.strayed[task] for task in TASKS}
        cells = [f"{metrics[f'{task}_accuracy']:.3f}" for task in TASKS]
        table.add_row(name, *cells, *(f"{value:.4f}" if value else "0, exactly" for value in watch.strayed.values()))
    Console().print(table)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        LightningCLI(save_config_callback=None)  # the YAML names the model and the data
    else:
        main()
