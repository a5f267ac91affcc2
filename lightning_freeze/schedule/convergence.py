"""Find converged stages by the change of their gradient norm from one epoch to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class GradientNorms:
    """The mean gradient norm of each stage over an epoch, summed up without waiting for the device.

    Attributes:
        epoch: the epoch that is being measured.
        before: means of the previous epoch, by stage.
        sums: sums of this epoch so far, by stage.
        steps: number of updates in `sums`.
    """

    epoch: int = 0
    before: list[float] | None = None
    sums: Tensor | None = None
    steps: int = 0
    _counted: dict[int, int] = field(default_factory=dict)

    def add(self, norms: Tensor, optimizer: int, step: int) -> None:
        """Add the norms of one update, shape `[stages]`. A second call for the same update changes nothing."""
        if self._counted.get(optimizer) == step:
            return
        self._counted[optimizer] = step
        usable = torch.where(norms.isfinite().all(), norms, 0.0)  # a step that a GradScaler skips
        self.sums = usable if self.sums is None else self.sums.to(usable.device) + usable
        self.steps += 1

    def means(self) -> list[float]:
        """The means of this epoch. Waits for the device."""
        return [] if self.sums is None else [norm / self.steps for norm in self.sums.tolist()]

    def next_epoch(self, epoch: int, means: list[float]) -> None:
        """Start to measure another epoch."""
        self.epoch, self.before, self.sums, self.steps = epoch, means or self.before, None, 0

    def record(self) -> dict[str, Any]:
        """The fields as plain types."""
        sums = None if self.sums is None else self.sums.tolist()
        return {"epoch": self.epoch, "before": self.before, "sums": sums, "steps": self.steps}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> GradientNorms:
        """Restore what `record` returned; an empty record is the initial state."""
        sums = record.get("sums")
        return cls(**record | {"sums": None if sums is None else torch.tensor(sums)})


def relative_changes(before: Sequence[float], now: Sequence[float]) -> list[float]:
    """|now - before| / before of each stage; infinite if a stage had no gradient in one of the intervals."""
    return [
        abs(new - old) / old if old > 0 and new > 0 and math.isfinite(old + new) else math.inf
        for old, new in zip(before, now, strict=True)
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile of values, with linear interpolation.

    Examples:
        >>> percentile([4.0, 1.0, 2.0], 75)
        3.0
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def converged(before: Sequence[float], now: Sequence[float], share: float) -> int:
    """How many of the training stages to freeze: from the input upwards, without gaps, never the last.

    A stage has converged when its gradient norm changed by less than the percentile of all (AutoFreeze, Liu et al.,
    2021, arXiv:2102.01386).

    Args:
        before: norms of the previous interval, one per training stage, the stage at the input first.
        now: norms of this interval.
        share: the percentile, 0 to 100.

    Examples:
        >>> converged([1.0, 1.0, 1.0, 1.0], [1.01, 1.02, 1.3, 0.5], 50)
        2
    """
    changes = relative_changes(before, now)
    known = [change for change in changes if math.isfinite(change)]
    if not known:
        return 0
    bound = percentile(known, share)
    return next(k for k, change in enumerate([*changes[:-1], math.inf]) if not change < bound)
