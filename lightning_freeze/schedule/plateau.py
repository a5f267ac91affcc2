"""Detect that a metric has stopped improving: the rule of EarlyStopping, restarted at each stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Plateau:
    """The state of a metric trigger. A trigger in epoch k takes effect at the start of epoch k + 1.

    Attributes:
        ends: for each finished stage in order, the epoch in which its trigger fired.
        stage: the stage that `best` and `wait` belong to.
        best: the best value of that stage; smaller is better.
        wait: number of checks since the best value.
    """

    ends: dict[int, int] = field(default_factory=dict)
    stage: int = 0
    best: float = math.inf
    wait: int = 0

    def started(self, epoch: int, max_epochs: Sequence[int | None]) -> int:
        """How many stages have started by `epoch`.

        Args:
            epoch: zero-based.
            max_epochs: maximum number of epochs of each stage; None: no limit.
        """
        start = 0
        for stage, limit in enumerate(max_epochs[:-1]):
            ends = [self.ends[stage] + 1] if stage in self.ends else []
            ends += [start + limit] if limit is not None else []
            if not ends or min(ends) > epoch:
                return stage + 1
            start = min(ends)
        return len(max_epochs)

    def check(self, value: Tensor, epoch: int, stage: int, patience: int, min_delta: float) -> bool:
        """Add one value (smaller is better), and return whether it is the best of its stage so far.

        Values are compared in their own precision, as in EarlyStopping: 0.9 improves on 1.0 by 0.1, not by more.
        """
        if stage in self.ends:  # this stage is over; the next one starts with the next epoch
            return False
        if stage != self.stage:
            self.stage, self.best, self.wait = stage, math.inf, 0
        if value + min_delta < torch.tensor(self.best, dtype=value.dtype):
            self.best, self.wait = value.item(), 0
            return True
        self.wait += 1
        if self.wait >= patience:
            self.ends[stage] = epoch
        return False

    def record(self) -> dict[str, Any]:
        """The fields as plain types."""
        return {"ends": dict(self.ends), "stage": self.stage, "best": self.best, "wait": self.wait}
