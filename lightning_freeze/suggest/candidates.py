"""What is raced: a way, a mode of the normalisation layers, a learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_freeze.stages.stage import Stage
from lightning_freeze.suggest.ways import Spec, callbacks_of, spec

# The order in which ways enter a race that has no room for all, and the rate of each, relative to the highest that a
# whole run of full fine-tuning (`FULL`) or of the head alone (`HEAD`) bears. From benchmarks/grid.py.
FULL, HEAD = 1 / 5, 1 / 5  # of the rate at which the loss of a range test turned up
ORDER = {
    "head": 1.0, "gradual": 3.0, "decay": 3.0, "slices": 10.0, "all": 1.0, "LP-FT": 10.0, "last half": 1.0,
    "last stage": 3.0, "anchor": 1.0, "norm and bias": 3.0, "first third": 1.0,
}  # fmt: skip
TRAIN_MODE = ("all", "decay", "gradual")
CACHED = ("head", "last stage", "last half")  # a prefix is frozen for the whole run: FeatureCache gives the same bits
_LIMITS = 1e-7, 10.0


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    Args:
        way: a name of `WAYS`.
        norm: "eval" or "train": the mode of normalisation statistics; "" for a model without them.
        rate: learning rate at the start, that of the head where stages differ.
    """

    way: str
    norm: str
    rate: float

    @property
    def title(self) -> str:
        return f"{self.way}, BatchNorm {self.norm}" if self.norm else self.way

    def specs(self, stages: Sequence[Stage], *, cached: bool = False) -> list[Spec]:
        """The callbacks; with `cached`, also what makes a race faster and changes no bit of its result."""
        found = callbacks_of(self.way, stages, self.norm)
        fast = cached and self.way in CACHED and self.norm != "train" and len(stages) > 1
        return [*found, spec("FeatureCache", verbose=False)] if fast else found


def on_scale(rate: float) -> float:
    """The nearest of ..., 0.001, 0.003, 0.01, 0.03, ...

    Example:
        >>> on_scale(0.0047), on_scale(0.0079)
        (0.003, 0.01)
    """
    power, rest = divmod(round(2 * math.log10(min(max(rate, _LIMITS[0]), _LIMITS[1]))), 2)
    return float(f"{(3 if rest else 1)}e{power}")


def neighbours(candidate: Candidate) -> list[Candidate]:
    """The same with a rate a factor of 3 lower, and one a factor of 3 higher."""
    return [
        Candidate(candidate.way, candidate.norm, on_scale(candidate.rate * factor)) for factor in (10**-0.5, 10**0.5)
    ]


def entries(turning: Mapping[tuple[str, str], float], has_norm: bool, stages: int) -> list[Candidate]:
    """The candidates by promise: each way at one rate, then at a higher and a lower one.

    Args:
        turning: "all" or "head", and mode -> the rate at which the loss of a range test turned up.
        has_norm: whether there are normalisation layers with running statistics.
        stages: how many there are; with one there is nothing to freeze.
    """
    modes = [(way, "eval" if has_norm else "") for way in ORDER]
    modes[5:5] = [(way, "train") for way in TRAIN_MODE if has_norm]
    if stages < 2:
        modes = [(way, norm) for way, norm in modes if way == "all"]
    first = [Candidate(way, norm, rate) for way, norm in modes if (rate := _rate(way, norm, turning)) is not None]
    other = [near for candidate in first for near in neighbours(candidate)]
    return list(dict.fromkeys([*first, *other]))


def _rate(way: str, norm: str, turning: Mapping[tuple[str, str], float]) -> float | None:
    own, part = ("head", HEAD) if way == "head" else ("all", FULL)
    found = turning.get((own, norm))
    return None if found is None else on_scale(found * part * ORDER[way])
