"""The metric to compare candidates by: a validation metric, else the validation loss, else the training loss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_freeze.errors import PlanError

_HIGHER = re.compile(r"acc|f1|auc|auroc|precision|recall|iou|dice|bleu|rouge|r2|map\b|score|psnr|ssim|kappa", re.I)
_LOWER = re.compile(r"loss|err|mse|mae|rmse|perplexity|ppl|nll|wer|cer|fid", re.I)
LOSS = "training loss"


@dataclass(frozen=True)
class Metric:
    """Name and direction of a logged metric; `LOSS` is the loss of `training_step` on data that is held out."""

    name: str
    mode: str  # "min" | "max"

    def merit(self, value: float) -> float:
        """The value with the sign for which larger is better."""
        return value if self.mode == "max" else -value


def choose(logged: Sequence[str], monitor: str | None, mode: str | None, callbacks: Sequence[Any] = ()) -> Metric:
    """Choose the metric to compare candidates by.

    Args:
        logged: names that validation logs.
        monitor: the user's choice.
        mode: its direction, "min" or "max"; None: by the name.
        callbacks: callbacks of the user's Trainer; the metric of a ModelCheckpoint or EarlyStopping is next.

    Raises:
        PlanError: validation does not log the metric, or its direction is unknown.
    """
    if monitor is not None:
        if monitor not in logged:
            raise PlanError(
                f"--monitor {monitor}: validation logs {', '.join(logged) or 'nothing'}.\n  Log it in "
                "validation_step, or name another"
            )
        return Metric(monitor, mode or direction(monitor))
    for callback in callbacks:
        watched = getattr(callback, "monitor", None)
        if watched in logged:
            return Metric(str(watched), mode or str(getattr(callback, "mode", None) or direction(str(watched))))
    for pattern, found in ((_HIGHER, "max"), (_LOWER, "min")):
        if names := [name for name in logged if pattern.search(name)]:
            return Metric(names[0], mode or found)
    return Metric(logged[0], mode or direction(logged[0])) if logged else Metric(LOSS, "min")


def direction(name: str) -> str:
    """The direction of a metric, "min" or "max", by its name.

    Raises:
        PlanError: the name does not show it.
    """
    for pattern, found in ((_LOWER, "min"), (_HIGHER, "max")):
        if pattern.search(name):
            return found
    raise PlanError(
        f"whether more or less of '{name}' is better cannot be told from its name.\n  Say --mode min or max"
    )


def value_of(metrics: Mapping[str, Any], metric: Metric) -> float:
    """A metric as a number; NaN if it was not logged."""
    return round(float(metrics[metric.name]), 6) if metric.name in metrics else float("nan")
