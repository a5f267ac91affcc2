"""The same fine-tuning as users of five tools write it: head, then layer4, then the rest, at half the rate each.

`peers.py` runs and measures it. A peer's `written` is what its user adds to `Net`; its lines are counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, lr_scheduler

from lightning_freeze import GradualUnfreeze, LayerwiseLR

LR, EPOCHS, STEPS = 1e-3, 6, 6  # a stage joins every two epochs
PROBES = ("head.weight", "backbone.layer4.0.weight", "backbone.layer1.0.weight")  # one of each stage
FACTORS = (1.0, 0.5, 0.25)
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 7, 0.5),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.97**step),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=EPOCHS * STEPS
    ),
}


def block(inputs: int, outputs: int) -> nn.Sequential:
    parts = []
    for channels, stride in ((inputs, 2), (outputs, 1)):
        parts += [nn.Conv2d(channels, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*parts)


class Net(LightningModule):
    """A small convolutional network; its Dropout has probability 0: its mode counts, and it draws no random numbers."""

    def __init__(self, scheduler: str = "StepLR") -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = {f"layer{k}": block(inputs, 32 * k) for k, inputs in ((1, 3), (2, 32), (3, 64), (4, 96))}
        pool = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        self.backbone = nn.Sequential(OrderedDict({"dropout": nn.Dropout(0.0), **blocks, **pool}))
        self.head = nn.Linear(128, 10)
        self.scheduler = scheduler

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def scheduled(self, optimizer: Optimizer) -> Any:
        """With the scheduler under test, which steps with the optimizer."""
        scheduler = SCHEDULERS[self.scheduler](optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_optimizers(self) -> Any:
        return self.scheduled(AdamW(self.parameters(), lr=LR))


# ---- this package


def freeze_callbacks() -> list[Any]:
    return [
        GradualUnfreeze(["head", "backbone.layer4", "backbone"], every_n_epochs=2),
        LayerwiseLR(decay=0.5),
    ]


# ---- Lightning's own


class HeadFirst(Net):
    def configure_optimizers(self) -> Any:
        return self.scheduled(AdamW([p for p in self.parameters() if p.requires_grad], lr=LR))


def backbone_finetuning() -> list[Any]:
    return [BackboneFinetuning(2, lambda epoch: 1.0, backbone_initial_ratio_lr=0.5, should_align=False)]


# ---- finetuning-scheduler


def finetuning_scheduler() -> list[Any]:
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint

    schedule = {
        0: {"params": ["head.*"], "max_transition_epoch": 2},
        1: {"params": ["backbone.layer4.*"], "max_transition_epoch": 4, "lr": 0.5 * LR},
        2: {"params": ["backbone.(?!layer4).*"], "max_transition_epoch": 6, "lr": 0.25 * LR},
    }
    return [
        FinetuningScheduler(schedule, epoch_transitions_only=True, restore_best=False),
        FTSCheckpoint(monitor="val_loss", save_top_k=-1),
    ]


# ---- by hand, as tutorials write it


class ByHand(Net):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.backbone.requires_grad_(False)

    def stages(self) -> list[list[nn.Module]]:
        rest = [module for name, module in self.backbone.named_children() if name != "layer4"]
        return [[self.head], [self.backbone.layer4], rest]

    def on_train_epoch_start(self) -> None:
        for stage in self.stages()[: 1 + self.current_epoch // 2]:
            for module in stage:
                module.requires_grad_(True)

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": [p for module in stage for p in module.parameters()], "lr": LR * 0.5**k}
            for k, stage in enumerate(self.stages())
        ]
        return self.scheduled(AdamW(groups))


# ---- fastai's way by hand: groups, `freeze_to`, BatchNorm goes on training, a new fit for each stage


class FastaiStyle(Net):
    def groups(self) -> list[list[nn.Module]]:
        rest = [module for name, module in self.backbone.named_children() if name != "layer4"]
        return [rest, [self.backbone.layer4], [self.head]]

    def freeze_to(self, first: int) -> None:
        for k, group in enumerate(self.groups()):
            for module in (inner for outer in group for inner in outer.modules()):
                trains = k >= first or isinstance(module, nn.BatchNorm2d)
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(trains)

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": [p for module in group for p in module.parameters()], "lr": LR * 0.5 ** (2 - k)}
            for k, group in enumerate(self.groups())
        ]
        return self.scheduled(AdamW(groups))


def fits(model: FastaiStyle, fit: Callable[[int], None]) -> None:
    for first in (2, 1, 0):
        model.freeze_to(first)
        fit(2)


@dataclass(frozen=True)
class Peer:
    """A way to write it. With `fits`, several fits one after the other; else one of all epochs."""

    name: str
    net: type[Net]
    written: tuple[Any, ...]
    stages: str
    callbacks: Callable[[], list[Any]] = list
    fits: Callable[[Any, Callable[[int], None]], None] | None = None


PEERS = [
    Peer(
        "lightning-freeze",
        Net,
        (freeze_callbacks,),
        "any number, found or named; by epochs, steps, fractions, a curve or a metric",
        freeze_callbacks,
    ),
    Peer(
        "BackboneFinetuning",
        HeadFirst,
        (HeadFirst, backbone_finetuning),
        "two: head and backbone; at an epoch",
        backbone_finetuning,
    ),
    Peer(
        "finetuning-scheduler",
        Net,
        (finetuning_scheduler,),
        "any number, generated or named; by epochs or early stopping",
        finetuning_scheduler,
    ),
    Peer("by hand", ByHand, (ByHand,), "as written"),
    Peer("fastai's way, by hand", FastaiStyle, (FastaiStyle, fits), "as written, a fit each", fits=fits),
]
FULL = Peer("full training", Net, (), "none")
