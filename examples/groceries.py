"""Few-shot photographs of groceries and a MobileNetV2 for them, in plain Lightning.

The freezing is in the trainer's callbacks, so data and model know nothing of it:

    python examples/groceries.py fit --config examples/groceries.yaml
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import NamedTuple

import fetch
import lightning as L
import pyarrow.parquet as parquet
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models import mobilenet_v2
from torchvision.transforms import v2

CLASSES = 14
CROP = 96  # pixels, what the model sees
STORED = 128  # pixels, what random crops are taken from


class Split(NamedTuple):
    """Decoded photographs `[n, 3, 128, 128]` uint8 and their classes `[n]` int64."""

    images: Tensor
    labels: Tensor


@lru_cache
def load(split: str) -> Split:
    """The photographs of "train", "val" or "test", each once, decoded once per process."""
    columns = ["dataset", "finegrained_cat", "image_data"]
    rows = parquet.read_table(fetch.groceries_file(), columns=columns).to_pylist()
    classes = sorted({row["finegrained_cat"] for row in rows})
    unique = {row["image_data"]: row for row in rows if row["dataset"] == split}
    images = torch.stack([_decode(jpeg) for jpeg in unique])
    return Split(images, torch.tensor([classes.index(row["finegrained_cat"]) for row in unique.values()]))


def _decode(jpeg: bytes) -> Tensor:
    image = v2.functional.pil_to_tensor(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    square: Tensor = v2.functional.center_crop(v2.functional.resize(image, [STORED], antialias=True), [STORED])
    return square


def few_shot(split: Split, per_class: int, seed: int) -> Split:
    """`per_class` photographs of each class, the same for the same seed."""
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(seed))
    kept = torch.cat([order[split.labels[order] == label][:per_class] for label in range(CLASSES)])
    return Split(split.images[kept], split.labels[kept])


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """A split as normalised crops `[3, 96, 96]`: random and flipped to train, else from the centre."""

    def __init__(self, split: Split, augment: bool) -> None:
        self.split = split
        crops: list[nn.Module] = [v2.RandomCrop(CROP), v2.RandomHorizontalFlip()] if augment else [v2.CenterCrop(CROP)]
        normalize = v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        self.transform = v2.Compose([*crops, v2.ToDtype(torch.float32, scale=True), normalize])

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.split.images[index]), self.split.labels[index]


class Groceries(L.LightningDataModule):
    """Photographs of fruit in shops, 14 kinds: a few per class to train on, the whole test split.

    From the Grocery Store Dataset (Klasson et al., 2019). Augmentation draws from torch's global
    generator, so `seed_everything` fixes it; `seed` fixes the choice of photographs and their order.

    Args:
        per_class: photographs of each class to train on (29 to 70 are there).
        batch_size: photographs per batch.
        seed: of the choice of photographs and of their order.
    """

    def __init__(self, per_class: int = 10, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def prepare_data(self) -> None:
        fetch.groceries_file()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        train = few_shot(load("train"), self.hparams["per_class"], self.hparams["seed"])
        order = torch.Generator().manual_seed(self.hparams["seed"])
        return DataLoader(Crops(train, augment=True), self.hparams["batch_size"], shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(Crops(load("val"), augment=False), batch_size=64)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(Crops(load("test"), augment=False), batch_size=64)


class GroceryNet(L.LightningModule):
    """ImageNet's MobileNetV2 with a new head, AdamW over all parameters and a cosine schedule.

    Args:
        lr: learning rate of AdamW at the first step; it falls to 0 at the last.
        weight_decay: of AdamW.
    """

    def __init__(self, lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        fetch.mobilenet_weights()
        self.model = mobilenet_v2(weights="IMAGENET1K_V1")
        self.model.classifier[1] = nn.Linear(self.model.last_channel, CLASSES)
        self.model.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.val_accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.test_accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.example_input_array = torch.zeros(1, 3, CROP, CROP)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), prog_bar=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        self.test_accuracy(self(images), labels)
        self.log("test_accuracy", self.test_accuracy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


if __name__ == "__main__":
    LightningCLI(save_config_callback=None)  # the YAML names the model and the data
