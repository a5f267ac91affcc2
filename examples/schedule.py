"""The picture of a schedule: which stage trains when, at what rate. Simulated, without data, in a second.

Run as `python examples/schedule.py [FILE.svg]`.
"""

from __future__ import annotations

import sys
import warnings

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm
from torchvision.models import mobilenet_v2

from lightning_freeze import GradualUnfreeze, LayerwiseLR
from lightning_freeze.plan import Progress
from lightning_freeze.reconcile import Reconciler

EPOCHS = 12


def simulate() -> tuple[list[str], list[list[float]], list[float]]:
    """Stage names head first, the rate of each stage in each epoch (0: frozen), and the share that trains."""
    model = mobilenet_v2(num_classes=14)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    run = Reconciler(model, [GradualUnfreeze(6), LayerwiseLR(decay=0.5)], [optimizer], [scheduler])
    total = sum(parameter.numel() for parameter in model.parameters())
    rates: list[list[float]] = []
    shares = []
    for epoch in range(EPOCHS):
        run.reconcile(Progress(epoch, epoch))
        rates.append([group["lr"] if group["params"] else 0.0 for group in optimizer.param_groups])
        shares.append(sum(run.index.parameters[name].numel() for name in run.trainable) / total)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no step of the optimizer before that of the scheduler
            scheduler.step()
    names = [slot.name for slot in run.optimizers[0].slots]
    return names[::-1], [row[::-1] for row in rates], shares


def draw(path: str) -> None:
    names, rates, shares = simulate()
    figure, (top, below) = plt.subplots(2, 1, figsize=(9, 4.6), height_ratios=[3, 1], sharex=True, layout="constrained")
    values = torch.tensor(rates).T
    image = top.imshow(
        values.where(values > 0, torch.nan), aspect="auto", cmap="viridis", norm=LogNorm(), interpolation="nearest"
    )
    top.set_yticks(range(len(names)), names)
    top.set_title("MobileNetV2: GradualUnfreeze(6), LayerwiseLR(decay=0.5), CosineAnnealingLR")
    figure.colorbar(image, ax=[top, below], label="learning rate (white: frozen)")
    below.bar(range(EPOCHS), [100 * share for share in shares], color="tab:gray", width=0.9)
    below.set(xlabel="epoch", ylabel="% training", ylim=(0, 105), xticks=range(EPOCHS))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "examples/schedule.png")
