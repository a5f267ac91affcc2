"""A run with a progress bar of tqdm, then one with rich's, for a test that looks at the terminal."""

from __future__ import annotations

import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from torch import nn

from lightning_freeze import BatchNormEval, GradualUnfreeze, LayerwiseLR


class ClassifierOfPhotographsWithALongName(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)) for _ in range(3)))
        self.head = nn.Linear(64, 2)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.head(self.body(batch)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for bar in (TQDMProgressBar(), RichProgressBar()):
        Trainer(
            max_epochs=2,
            callbacks=[
                GradualUnfreeze(["head", "body.2", ["body.0", "body.1"]]),
                LayerwiseLR(0.5),
                BatchNormEval(),
                bar,
            ],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        ).fit(ClassifierOfPhotographsWithALongName(), torch.utils.data.DataLoader(torch.randn(16, 64), batch_size=8))
