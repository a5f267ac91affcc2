"""The picture of a schedule: which stage trains when, at what rate. Simulated, without data, in a second.

Run as `python examples/schedule.py [FILE.svg]`. `lightning-freeze preview --config FILE --plot FILE` draws the same of
a LightningCLI config, and `FreezeMonitor(plot=...)` of a run.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torchvision.models import mobilenet_v2

from lightning_freeze import GradualUnfreeze, LayerwiseLR
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.report.plot import draw
from lightning_freeze.report.timeline import Timeline
from lightning_freeze.schedule.moments import Progress

EPOCHS = 12


def simulate() -> Timeline:
    """Stages by time, from the code that trains."""
    model = mobilenet_v2(num_classes=14)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    run = Reconciler(model, [GradualUnfreeze(6), LayerwiseLR(decay=0.5)], [optimizer], [scheduler])
    timeline = Timeline()
    timeline.begin(run.view, "MobileNetV2: GradualUnfreeze(6), LayerwiseLR(decay=0.5), CosineAnnealingLR")
    for epoch in range(EPOCHS):
        change = run.reconcile(Progress(epoch, epoch))
        timeline.add(run.view, run.updates.rates(), epoch, epoch, change=bool(change))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no step of the optimizer before that of the scheduler
            scheduler.step()
    timeline.end = EPOCHS
    return timeline


if __name__ == "__main__":
    draw(simulate(), sys.argv[1] if len(sys.argv) > 1 else "examples/schedule.png")
