"""A rate per layer that follows its weights and gradients: SGD at a rate far too small for most layers, and a remedy.

python examples/layer_adaptive.py                                                 # plain, and two kinds of factors
python examples/layer_adaptive.py fit --config examples/layer_adaptive.yaml       # one of them, from YAML
"""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table
from rotating import STAGES, DigitNet, train

from lightning_freeze import LayerAdaptiveLR

ALL: list[Any] = ["head", *STAGES, "stem"]


def main(epochs: int = 5) -> dict[str, tuple[dict[str, float], float]]:
    """Train in four ways, and print the last factors of each layer."""
    table = Table("", "accuracy", *ALL, title="Factors of the last step, digits")
    found = {}
    for name, adam, lr, kind in (
        ("SGD", False, 1e-2, None),
        ("SGD, trust ratio (LARS)", False, 1e-2, "trust_ratio"),
        ("AdamW", True, 3e-3, None),
        ("AdamW, moment ratio", True, 3e-3, "moment_ratio"),
    ):
        L.seed_everything(0, verbose=False)
        more: list[Any] = [] if kind is None else [LayerAdaptiveLR(kind, max_factor=50.0, stages=ALL, verbose=False)]  # type: ignore[arg-type]
        accuracy = train(DigitNet(lr, adam), [*more], epochs).accuracy()
        factors = dict(more[0].factors) if more else {}
        found[name] = factors, accuracy
        table.add_row(name, f"{accuracy:.3f}", *(f"{factors.get(stage, 1.0):.3g}" for stage in ALL))
    Console().print(table)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        LightningCLI(save_config_callback=None)  # the YAML names the model and the data
    else:
        main()
