"""Means of a few measurements with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Two-sided 95% quantiles of Student's t, by degrees of freedom; 1.96 in the limit.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


class Interval(NamedTuple):
    """A mean and half the width of its 95% interval; `half` is infinite for a single value."""

    mean: float
    half: float


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent measurements with its 95% interval (Student's t).

    Examples:
        >>> found = interval([0.70, 0.72, 0.74])
        >>> print(f"{found.mean:.3f} +- {found.half:.3f}")
        0.720 +- 0.050
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, math.inf)
    quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else 2.0
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """The difference of two candidates over the folds or seeds that both were measured on."""
    return interval([value - other[key] for key, value in one.items() if key in other])
