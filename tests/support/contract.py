"""What test_contract.py and its processes share: one line per exported callback, and a model that suits them all."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from helpers import STAGES, Net
from torch import Tensor, nn

import lightning_freeze

# What each callback is made with; FeatureCache works on what something else has frozen.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "AnchorWeights": {"strength": 5.0, "patterns": ["*", "!head"], "decay": 0.5, "stages": STAGES},
    "BatchNormEval": {"patterns": "mid", "affine": "freeze"},
    "FeatureCache": {},
    "FreezeAudit": {"every_n_epochs": 1},
    "FreezeLayers": {"patterns": ["stem", "!stem.0"], "start": 1, "stop": 3},
    "FreezeMonitor": {},
    "GradualUnfreeze": {"stages": STAGES, "warmup_steps": 3},
    "GroupOptions": {"options": {"kind:norm": {"weight_decay": 0.25}, "head": {"weight_decay": 0.125}}},
    "LayerAdaptiveLR": {},
    "LayerwiseLR": {"decay": 0.5, "multipliers": {"head.bias": 2.0}, "stages": STAGES},
    "ProgressiveFreeze": {"stages": STAGES, "span": (0.0, 1.0)},
    "RateGrowth": {"patterns": "stem", "start": 1, "initial": 0.25},
    "RotatingUnfreeze": {"stages": STAGES, "every_n_train_steps": 2},
    "SlimCheckpoint": {},
    "StageSchedule": {"shape": "slanted_triangular", "warmup": 0.3, "final_factor": 0.1},
    "TaskFreeze": {"tasks": {"even": "mid.0", "odd": []}, "task_key": "task_of"},
}


def exported() -> list[str]:
    """Names of the callbacks of the package."""
    found = [getattr(lightning_freeze, name) for name in lightning_freeze.__all__]
    return [one.__name__ for one in found if isinstance(one, type) and issubclass(one, pl.Callback)]


def make(name: str) -> Any:
    """A callback that says nothing."""
    callback = getattr(lightning_freeze, name)(**ARGUMENTS[name])
    callback.verbose = False
    return callback


def beside(name: str) -> list[Any]:
    """The callback, with what it needs beside it to have something to do."""
    frozen = lightning_freeze.FreezeLayers("stem", verbose=False)
    return [make(name), *([frozen] if name == "FeatureCache" else [])]


class ContractNet(Net):
    """AdamW and a scheduler, a rate that can be tuned, a task per batch."""

    def __init__(self, lr: float = 0.01, batch_size: int = 4, norms: bool = True) -> None:
        super().__init__()
        if not norms:
            self.stem[1], self.mid[1] = nn.Identity(), nn.Identity()
        for norm in (self.stem[1], self.mid[1]) if norms else ():  # as of a pretrained network
            norm.running_mean.fill_(0.5), norm.running_var.fill_(2.0), norm.num_batches_tracked.fill_(100)
        self.lr, self.batch_size = lr, batch_size
        self.example_input_array = torch.zeros(2, 4)

    def task_of(self, batch: tuple[Tensor, Tensor]) -> str:
        return "even" if float(batch[0].sum()) > 0 else "odd"

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows), batch_size=self.batch_size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Seeded(pl.Callback):
    """The same Dropout in each step, whatever was drawn before."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)
