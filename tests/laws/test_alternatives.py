"""What the README's table says of the alternatives, on a network of its own. (DDP is in test_ddp.py.)"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.optim import lr_scheduler

from lightning_freeze import FreezeLayers, GradualUnfreeze, LayerwiseLR

SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 1e-3, 1e-2, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
}


class Net(LightningModule):
    def __init__(self, scheduler: str | None = None, by_hand: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)
        self.scheduler = scheduler
        if by_hand:
            self.backbone.requires_grad_(False)
        self.dropout_was_on = False

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.dropout_was_on |= self.backbone[2].training
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-2)
        return optimizer if self.scheduler is None else ([optimizer], [SCHEDULERS[self.scheduler](optimizer)])


def fit(model: Net, *callbacks: Any) -> Trainer:
    data = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.randint(0, 2, (16,)))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=3, callbacks=list(callbacks), **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(data, 8))
    return trainer


def moved(*callbacks: Any, by_hand: bool = False) -> dict[str, bool]:
    """Whether statistics, and whether the weight of the frozen BatchNorm moved, and whether Dropout was on."""
    model = Net(by_hand=by_hand)
    norm: Any = model.backbone[1]
    mean, weight = norm.running_mean.clone(), norm.weight.detach().clone()
    fit(model, *callbacks)
    return {
        "statistics": not torch.equal(mean, norm.running_mean),
        "weight": not torch.equal(weight, norm.weight),
        "dropout": model.dropout_was_on,
    }


def test_here_nothing_of_a_frozen_layer_moves() -> None:
    assert moved(FreezeLayers("backbone")) == {"statistics": False, "weight": False, "dropout": False}


def test_with_backbone_finetuning_batchnorm_trains_and_dropout_is_on() -> None:
    found = moved(BackboneFinetuning(unfreeze_backbone_at_epoch=9))
    assert found == {"statistics": True, "weight": True, "dropout": True}


def test_by_hand_the_statistics_move_and_dropout_is_on() -> None:
    assert moved(by_hand=True) == {"statistics": True, "weight": False, "dropout": True}


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist:UserWarning")  # its BatchNorm
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_go_on_over_an_unfreezing_here_and_raise_with_backbone_finetuning(scheduler: str) -> None:
    stages = [GradualUnfreeze(["head", "backbone"], every_n_epochs=2, verbose=False), LayerwiseLR(0.5)]
    head, backbone = (
        next(group["lr"] for group in fit(Net(scheduler), *stages).optimizers[0].param_groups if group["name"] == name)
        for name in ("head", "backbone")
    )
    assert backbone == pytest.approx(0.5 * head, rel=1e-12)
    theirs = BackboneFinetuning(2, backbone_initial_ratio_lr=0.1, should_align=False, verbose=False)
    try:
        trainer = fit(Net(scheduler), theirs)
    except (ValueError, KeyError):
        return
    # torch before 2.7 leaves the new group out in silence
    assert "initial_lr" not in trainer.optimizers[0].param_groups[1]
