"""Is a sentence about a film positive? A frozen pretrained encoder with a new head, then stage after stage of it.

    python examples/sentiment.py                                           # both ways, a few minutes on one core
    python examples/sentiment.py fit --config examples/sentiment.yaml      # the second way, from YAML

all-MiniLM-L6-v2 (22M parameters) on 512 sentences of Rotten Tomatoes (Pang and Lee, 2005), tested on 1,066 others.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table
from sentences import SentenceNet, Sentences

from lightning_freeze import FreezeLayers, GradualUnfreeze, LayerwiseLR

STAGES: list[Any] = [
    "head",
    "encoder.encoder.layer.[45]",
    "encoder.encoder.layer.[23]",
    ["encoder.encoder.layer.[01]", "encoder.embeddings"],
]
LAYERS: list[Any] = ["head", *[f"encoder.encoder.layer.{k}" for k in range(5, -1, -1)], "encoder.embeddings"]
WAYS: dict[str, tuple[float, Any]] = {
    "frozen encoder, new head": (1e-2, lambda: [FreezeLayers("encoder")]),
    "a stage per epoch, rate x 0.7 per layer": (
        1e-3,
        lambda: [GradualUnfreeze(STAGES, warmup_steps=16), LayerwiseLR(0.7, stages=LAYERS)],
    ),
}


def main(epochs: int = 4, count: int = 512, tested: int | None = None) -> dict[str, float]:
    """Train both ways, and print accuracy and time."""
    table = Table("", "rate", "accuracy", "CPU s", title=f"{count} sentences, {epochs} epochs")
    found = {}
    for name, (lr, callbacks) in WAYS.items():
        L.seed_everything(0, verbose=False)
        data = Sentences(count, tested=tested)
        trainer = L.Trainer(
            max_epochs=epochs, callbacks=callbacks(), accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_model_summary=False,
        )  # fmt: skip
        began = time.process_time()
        model = SentenceNet(lr)
        trainer.fit(model, data)
        seconds = time.process_time() - began
        found[name] = trainer.test(model, data, verbose=False)[0]["test_accuracy"]
        table.add_row(name, f"{lr:g}", f"{found[name]:.3f}", f"{seconds:.0f}")
    Console().print(table)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        LightningCLI(save_config_callback=None)  # the YAML names the model and the data
    else:
        main()
