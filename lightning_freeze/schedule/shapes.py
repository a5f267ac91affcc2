"""Curves of a learning rate over a number of optimizer steps: a rise to the peak, then a fall. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

SHAPES = ("one_cycle", "cosine", "linear", "slanted_triangular")


@dataclass(frozen=True)
class Curve:
    """Factors of a rate over a number of optimizer steps.

    The rate rises linearly ("one_cycle": along a cosine) and falls along a cosine ("linear" and "slanted_triangular":
    linearly). Step k of n is at k / n: the first step uses the start factor, and the step after the last would use
    the final one.

    Attributes:
        shape: one of `SHAPES`.
        warmup: fraction of the steps that rise; "slanted_triangular" rounds their number down (Howard and Ruder,
            2018, arXiv:1801.06146).
        start: factor at the start.
        peak: largest factor.
        final: factor at the end and afterwards.
    """

    shape: str
    warmup: float
    start: float
    peak: float
    final: float

    def at(self, step: int, length: float) -> float:
        """The factor of a step.

        Args:
            step: optimizer steps since the start.
            length: optimizer steps from start to end.
        """
        along = _line if self.shape in ("linear", "slanted_triangular") else _cosine
        rising = _cosine if self.shape == "one_cycle" else _line
        return _rise_and_fall(self, step, length, (self.start, 1.0, self.final), (rising, along)) * self.peak

    def momentum_at(self, step: int, length: float, low: float, high: float) -> float:
        """The momentum of a step: it falls from `high` to `low` while the rate rises, then rises again."""
        return _rise_and_fall(self, step, length, (high, low, high), (_cosine, _cosine))


def _rise_and_fall(
    curve: Curve,
    step: int,
    length: float,
    values: tuple[float, float, float],
    along: tuple[Callable[[float, float, float], float], Callable[[float, float, float], float]],
) -> float:
    """Go from the first value to the second while the rate rises, then to the third, and stay there."""
    rising = curve.warmup * length
    if curve.shape == "slanted_triangular":
        rising = math.floor(rising + 1e-9)
    if step >= length:
        return values[2]
    if step < rising:
        return along[0](values[0], values[1], step / rising)
    return along[1](values[1], values[2], (step - rising) / (length - rising))


def _line(begin: float, end: float, part: float) -> float:
    return begin + (end - begin) * part


def _cosine(begin: float, end: float, part: float) -> float:
    return begin + (end - begin) * (1 - math.cos(math.pi * part)) / 2
