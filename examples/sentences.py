"""Film sentences, positive or negative, and MiniLM with a new head for them, in plain Lightning."""

from __future__ import annotations

import csv
from functools import lru_cache
from typing import Any

import fetch
import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

HELD_OUT = 1066  # test sentences; the rest is to train on
LENGTH = 48  # tokens at most
Example = tuple[list[int], int]  # token ids, label


@lru_cache
def load(split: str) -> list[Example]:
    """The sentences of "train" (balanced) or "test", tokenised, in an order that is the same for all seeds."""
    from transformers import AutoTokenizer

    with fetch.reviews_file().open(newline="") as file:
        rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    rows = list(dict(rows).items())  # each sentence once
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [rows[place] for place in (order[:HELD_OUT] if split == "test" else order[HELD_OUT:])]
    tokens = AutoTokenizer.from_pretrained(fetch.minilm_folder())
    ids = tokens([text for text, _ in chosen], truncation=True, max_length=LENGTH)["input_ids"]
    return [(row, label) for row, (_, label) in zip(ids, chosen, strict=True)]


def few_shot(examples: list[Example], count: int, seed: int) -> list[Example]:
    """`count` examples, half of each label, the same for the same seed."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    kept = {place for label in (0, 1) for place in [i for i in order if examples[i][1] == label][: count // 2]}
    return [examples[i] for i in order if i in kept]


def collate(batch: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask `[n, longest]`, labels `[n]`."""
    longest = max(len(ids) for ids, _ in batch)
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
    return padded, (padded != 0).long(), torch.tensor([label for _, label in batch])


class Sentences(L.LightningDataModule):
    """Rotten Tomatoes sentences (Pang and Lee, 2005): some to train on, and the test split.

    Args:
        count: sentences to train on, half of each label; None: all.
        seed: of the choice of sentences and of their order.
        batch_size: sentences per batch.
        tested: how many to test on; None: all.
    """

    def __init__(self, count: int | None = 512, seed: int = 0, batch_size: int = 16, tested: int | None = None) -> None:
        super().__init__()
        self.seed, self.batch_size = seed, batch_size
        self.train = load("train") if count is None else few_shot(load("train"), count, seed)
        self.test = load("test")[:tested]

    def train_dataloader(self) -> DataLoader[Any]:
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train, self.batch_size, shuffle=True, generator=order, collate_fn=collate)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Any]:
        by_length = sorted(self.test, key=lambda example: len(example[0]))  # less padding
        return DataLoader(by_length, 64, collate_fn=collate)  # type: ignore[arg-type]


class SentenceNet(L.LightningModule):
    """all-MiniLM-L6-v2, the mean over its tokens, a new linear head; AdamW over all parameters.

    Args:
        lr: learning rate of AdamW.
        weight_decay: of AdamW.
        cosine: whether the rate falls to 0 along a cosine, else it is constant.
    """

    def __init__(self, lr: float, weight_decay: float = 0.01, cosine: bool = True) -> None:
        super().__init__()
        from transformers import AutoModel

        self.lr, self.weight_decay, self.cosine = lr, weight_decay, cosine
        self.encoder = AutoModel.from_pretrained(fetch.minilm_folder(), add_pooling_layer=False)
        self.encoder.train()  # transformers gives it in eval mode, which would leave Dropout off
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1)
        mean = (states * weights).sum(1) / weights.sum(1)
        logits: Tensor = self.head(mean)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        ids, mask, labels = batch
        return nn.functional.cross_entropy(self(ids, mask), labels)

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        ids, mask, labels = batch
        right = (self(ids, mask).argmax(1) == labels).float().mean()
        self.log("test_accuracy", right, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        if not self.cosine:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
