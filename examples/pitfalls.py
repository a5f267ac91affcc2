"""Five ways in which freezing goes wrong without a word, each reproduced, and the same with the callbacks.

    python examples/pitfalls.py                                         # all of them side by side
    python examples/pitfalls.py fit --config examples/pitfalls.yaml     # the right way, from YAML, with its proof

A backbone trains for an epoch and is "frozen" from then on. The table shows what of it goes on changing.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.cli import LightningCLI
from middle_layer import Digits
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_freeze import FreezeAudit, FreezeLayers


class Net(L.LightningModule):
    """A backbone with BatchNorm and Dropout, and a head; `set_to_none=False` leaves zeros in gradients."""

    def __init__(self, set_to_none: bool = True) -> None:
        super().__init__()
        self.set_to_none = set_to_none
        self.backbone = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(32, 10)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=self.set_to_none)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([parameter for parameter in self.parameters() if parameter.requires_grad], lr=1e-2)


class ByHand(L.Callback):
    """What people write: at the start of the second epoch, call a function on the backbone."""

    def __init__(self, freeze: Any) -> None:
        self.freeze = freeze

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.freeze(pl_module.backbone)


class Trains(L.Callback):
    """Somebody calls `train()` at each batch, as many training loops do."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.train()


class Watch(L.Callback):
    """What of the backbone changes in the second epoch and later, when all of it should be frozen."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.current_epoch == 1 and not hasattr(self, "before"):
            self.before = {name: value.detach().clone() for name, value in pl_module.backbone.state_dict().items()}
            self.dropout = "off"
            pl_module.backbone[3].register_forward_hook(self.note)

    def note(self, module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        if not torch.equal(arguments[0], output):
            self.dropout = "ON"

    def moved(self, model: Net, *names: str) -> float:
        after = model.backbone.state_dict()
        return max(float((after[name] - self.before[name]).abs().max()) for name in names)


def flag(part: nn.Module) -> None:
    part.requires_grad_(False)


WAYS: dict[str, tuple[bool, Any]] = {
    "requires_grad_(False), zeros in .grad": (False, lambda: [ByHand(flag)]),
    "requires_grad_(False)": (True, lambda: [ByHand(flag)]),
    "backbone.eval()": (True, lambda: [ByHand(nn.Module.eval)]),
    "both, then model.train()": (True, lambda: [ByHand(flag), ByHand(nn.Module.eval), Trains()]),
    "Lightning's BackboneFinetuning": (True, lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=9)]),
    "FreezeLayers": (False, lambda: [FreezeLayers("backbone", 1, verbose=False), FreezeAudit(verbose=False), Trains()]),
}


def main(epochs: int = 3) -> dict[str, tuple[float, float, str]]:
    """Train in each way, and print what went on changing in the frozen backbone."""
    table = Table(
        "the backbone is frozen by", "weights", "BatchNorm statistics", "Dropout", title="Changes while frozen"
    )
    found = {}
    for name, (set_to_none, callbacks) in WAYS.items():
        L.seed_everything(0, verbose=False)
        model, watch = Net(set_to_none), Watch()
        trainer = L.Trainer(
            max_epochs=epochs, callbacks=[*callbacks(), watch], accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, Digits())
        weights = watch.moved(model, "0.weight", "0.bias", "1.weight", "1.bias")
        found[name] = weights, watch.moved(model, "1.running_mean", "1.running_var"), watch.dropout
        table.add_row(name, *(f"{change:.4f}" if change else "0" for change in found[name][:2]), watch.dropout)
    Console().print(table)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        LightningCLI(save_config_callback=None)  # the YAML names the model and the data
    else:
        main()
