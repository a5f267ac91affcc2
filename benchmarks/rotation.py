"""Memory of optimizer state when a few stages train at a time, against training everything.

    python benchmarks/rotation.py [--json FILE]

A transformer encoder of 12 layers, 22 M parameters, AdamW. Counted are the bytes of all tensors in `optimizer.state`
after each step, and of gradients right before it; the most over the run. A ratio, so noise of a machine has no part.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_freeze import RotatingUnfreeze

LAYERS, WIDTH, EVERY, STEPS = 12, 384, 2, 48


class Encoder(LightningModule):
    """Embeddings, 12 layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, WIDTH)
        self.layers = nn.Sequential(
            *[nn.TransformerEncoderLayer(WIDTH, 6, 4 * WIDTH, batch_first=True) for _ in range(LAYERS)]
        )
        self.head = nn.Linear(WIDTH, 1000)

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        logits = self.head(self.layers(self.embed(batch[0])))
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[0].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Memory(Callback):
    """The most bytes of optimizer state and of gradients."""

    def __init__(self) -> None:
        self.state = self.gradients = 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        held = sum(p.grad.nbytes for p in pl_module.parameters() if p.grad is not None)
        self.gradients = max(self.gradients, held)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        values = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
        self.state = max(self.state, sum(value.nbytes for value in values if isinstance(value, Tensor)))


def measure(callbacks: list[Callback]) -> dict[str, int]:
    seed_everything(0, verbose=False)
    memory = Memory()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", max_steps=STEPS, callbacks=[*callbacks, memory], **quiet)
    data = torch.utils.data.TensorDataset(torch.randint(0, 1000, (STEPS, 8)))
    trainer.fit(Encoder(), torch.utils.data.DataLoader(data, batch_size=1))
    return {"state_bytes": memory.state, "gradient_bytes": memory.gradients}


def rotate(active: int) -> list[Callback]:
    stages: list[Any] = [f"layers.{k}" for k in reversed(range(LAYERS))]
    return [RotatingUnfreeze(stages, active, ["embed", "head"], EVERY, verbose=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    sizes = {name: sum(p.nbytes for p in part.parameters()) for name, part in Encoder().named_children()}
    layer, ends = sizes["layers"] // LAYERS, sizes["embed"] + sizes["head"]
    everything = measure([])
    results: dict[str, Any] = {"everything": everything | {"ratio": 1.0, "bound": 1.0}}
    for active in (1, 2, 4):
        found = measure(rotate(active))
        bound = (active * layer + ends) / (LAYERS * layer + ends)
        ratio = found["state_bytes"] / everything["state_bytes"]
        results[f"{active} of {LAYERS} layers, drawn"] = found | {"ratio": ratio, "bound": bound}
    table = Table("trains", "optimizer state, MB", "ratio", "share that is active", "gradients, MB", title="AdamW")
    for name, row in results.items():
        cells = [f"{row['state_bytes'] / 1e6:.1f}", f"{row['ratio']:.3f}", f"{row['bound']:.3f}"]
        table.add_row(name, *cells, f"{row['gradient_bytes'] / 1e6:.1f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
