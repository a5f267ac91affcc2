"""A run that resumes exactly: loader, module, and what has to be equal afterwards."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

EPOCHS, BATCHES = 5, 4
STAGES = ["model.6", ["model.3", "model.4"], ["model.0", "model.1"]]


class StatefulLoader:
    """Shuffles by epoch and resumes within one: without it, Lightning reads the first batches of an epoch again.

    The epoch comes from Lightning (`sampler.set_epoch`): it loads the state only when resuming within an epoch.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(BATCHES * 4, 6, generator=generator)
        self.targets = torch.randint(0, 3, (BATCHES * 4,), generator=generator)
        self.sampler = self
        self.epoch = self.position = self.resume_at = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Any:
        start, self.resume_at = self.resume_at, 0
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(self.epoch)).split(4)
        for place in range(start, BATCHES):
            self.position = (place + 1) % BATCHES
            yield self.inputs[order[place]], self.targets[order[place]]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = self.resume_at = state["position"]


class Net(pl.LightningModule):
    def __init__(self, optimizer: str = "AdamW", scheduler: str = "StepLR", interval: str = "epoch") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.2),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )
        self.names = optimizer, scheduler, interval

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        torch.manual_seed(self.global_step)  # Lightning does not save the random state: dropout must not depend on it
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        # a metric that depends on the weights and stalls now and then
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.log("val", (loss * 20).round() / 20)

    def configure_optimizers(self) -> Any:
        name, scheduler, interval = self.names
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(torch.optim, name)(self.parameters(), lr=0.05, **options)
        schedulers = {
            "StepLR": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
            "OneCycleLR": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=EPOCHS * BATCHES + 1),
            "Sequential": lambda: torch.optim.lr_scheduler.SequentialLR(
                optimizer,
                [
                    torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3),
                    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
                ],
                [3],
            ),
            "ReduceLROnPlateau": lambda: torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, patience=0, threshold=0.05
            ),
        }
        config = {"scheduler": schedulers[scheduler](), "interval": interval, "monitor": "val"}
        return {"optimizer": optimizer, "lr_scheduler": config}


def _identity(policy: dict[str, Any]) -> tuple[str, str, str]:
    return policy["class"], str(policy["signature"]), policy["arguments"]


def everything(trainer: Any) -> dict[str, Any]:
    """All that a run ends with, flat: weights, buffers, optimizer, schedulers, trigger history."""
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    kept = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")}
    ours = checkpoint["lightning_freeze"]
    kept["lightning_freeze"] = {key: ours[key] for key in ("trainable", "optimizers")}
    kept["policies"] = sorted(ours["policies"], key=_identity)
    leaves = torch.utils._pytree.tree_flatten_with_path(kept)[0]
    return {torch.utils._pytree.keystr(path): leaf for path, leaf in leaves}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    return [
        key
        for key, value in one.items()
        if not (torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key])
    ]
