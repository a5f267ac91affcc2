"""Configs whose code lies beside them: no data may be read, no batch made, no GPU asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CODE = """
import lightning.pytorch as pl
import torch
from helpers import Net as Base


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        raise AssertionError("a batch was read")


class Net(Base):
    def __init__(self, lr: float = 0.01, scheduler: str = "none", only_stem: bool = False):
        super().__init__()
        self.lr, self.scheduler, self.only_stem = lr, scheduler, only_stem

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW((self.stem if self.only_stem else self).parameters(), lr=self.lr)
        if self.scheduler == "cycle":
            steps = self.trainer.estimated_stepping_batches
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        if self.scheduler == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val"}}
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int = 8, rows: bool = True):
        super().__init__()
        self.batch_size, self.rows = batch_size, rows

    def prepare_data(self):
        raise AssertionError("data was downloaded")

    def train_dataloader(self):
        if not self.rows:
            raise FileNotFoundError("no such file: train.parquet")
        return torch.utils.data.DataLoader(Rows(), batch_size=self.batch_size, num_workers=4)

    val_dataloader = train_dataloader


class Stream(Data):
    def train_dataloader(self):
        class Endless(torch.utils.data.IterableDataset):
            def __iter__(self):
                raise AssertionError("a batch was read")

        return torch.utils.data.DataLoader(Endless())


class Fed(Data):
    def train_dataloader(self):
        rows = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.randint(0, 3, (40,)))
        return torch.utils.data.DataLoader(rows, batch_size=self.batch_size, shuffle=True)


class Broken(Net):
    def __init__(self):
        super().__init__()
        1 / 0
"""
FREEZE = {"class_path": "lightning_freeze.FreezeLayers"}
UNFREEZE = {"class_path": "lightning_freeze.GradualUnfreeze", "init_args": {"stages": ["head", "mid", "stem"]}}
TASKS = {"class_path": "lightning_freeze.TaskFreeze", "init_args": {"tasks": {"one": ["mid"]}}}
RATES = {"class_path": "lightning_freeze.LayerwiseLR", "init_args": {"decay": 0.1}}


def code_in(place: Path) -> Path:
    """The folder, with the module `previewed` in it."""
    (place / "previewed.py").write_text(CODE)
    return place


def config(folder: Path, *callbacks: Any, **changes: Any) -> str:
    """Path of a config with these callbacks; `model__lr=3` is an argument of the model, `model=...` all of it."""
    options: dict[str, Any] = {
        "trainer": {"max_epochs": 4, "accelerator": "gpu", "callbacks": list(callbacks)},
        "model": {"class_path": "previewed.Net"},
        "data": {"class_path": "previewed.Data"},
    }
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if not name:
            options[part] = value
        elif part == "trainer":
            options[part][name] = value
        else:
            options[part].setdefault("init_args", {})[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    return str(folder / "config.yaml")
