"""Models that count the rows they work on, for the tests of FeatureCache."""

from __future__ import annotations

from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_freeze import FreezeLayers, GradualUnfreeze

WIDTH, ROWS = 16, 22


class Tally:
    """Where modules count, out of sight of the cache: it would not skip a module that counts."""

    seen: ClassVar[dict[int, list[int]]] = {}


class Counted(nn.Module):
    """Counts the rows that it works on where gradients are on."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        Tally.seen[id(self)] = []

    @property
    def seen(self) -> list[int]:
        return Tally.seen[id(self)]

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            Tally.seen.setdefault(id(self), []).append(len(inputs))
        return self.layers(inputs)


def block(width: int = WIDTH) -> Counted:
    return Counted(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Dropout(0.5))


class Model(pl.LightningModule):
    """stem -> mid -> head; what a subclass does between them is its `features`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mid, self.head = block(), block(), nn.Linear(WIDTH, 3)
        self.losses: list[float] = []

    def features(self, inputs: Tensor) -> Tensor:
        return self.mid(self.stem(inputs))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.head(self.features(batch[0])), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val", nn.functional.cross_entropy(self.head(self.features(batch[0])), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Rows(torch.utils.data.Dataset):
    def __init__(self, augment: bool = False, rows: int = ROWS) -> None:
        generator = torch.Generator().manual_seed(1)
        self.data = torch.randn(rows, WIDTH, generator=generator), torch.randint(0, 3, (rows,), generator=generator)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(WIDTH) if self.augment else torch.zeros(())
        return self.data[0][row] + noise, self.data[1][row]


def frozen(*patterns: str) -> list[Any]:
    return [FreezeLayers(list(patterns or ("stem", "mid")))]


def gradual() -> list[Any]:
    return [GradualUnfreeze(["head", "mid", "stem"], every_n_epochs=3, verbose=False)]
