"""A small model under policies, without a Trainer: the view that reports read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_freeze import Reconciler
from lightning_freeze.schedule.moments import Progress


class Layered(nn.Module):
    """stem -> layers, each with a BatchNorm -> head."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 3)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(layers))
        self.head = nn.Linear(3, 2)


@contextmanager
def running(policies: Sequence[Any], model: nn.Module | None = None, progress: Progress | None = None) -> Iterator[Any]:
    """A run that has been reconciled once; its rate is 0.5."""
    model = Layered() if model is None else model
    run = Reconciler(model, list(policies), [torch.optim.SGD(model.parameters(), lr=0.5)])
    run.reconcile(Progress(0, 0, 100) if progress is None else progress)
    yield run
    run.close()
