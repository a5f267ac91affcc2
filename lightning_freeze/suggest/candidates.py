"""The candidates of a race: a way, a mode of normalisation layers, a learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_freeze.stages.stage import Stage
from lightning_freeze.suggest.ways import Spec, callbacks_of, spec

# The rate that a whole run of full fine-tuning bears, relative to that at which the loss of a range test turned up.
FULL = 1 / 5
# The ways in the order in which they enter a race that has no room for all, and the rate of each relative to that of
# full fine-tuning with statistics held. From the first three tasks of benchmarks/grid.py.
ORDER = {
    "gradual": 3.0, "head": 30.0, "slices": 10.0, "LP-FT": 10.0, "decay": 3.0, "all": 1.0, "last stage": 3.0,
    "last half": 1.0, "anchor": 1.0, "norm and bias": 3.0, "first third": 1.0,
}  # fmt: skip
TRAIN_MODE = {"all": 5.0, "decay": 30.0, "gradual": 30.0}  # the same with normalisation layers in train mode
CACHED = ("head", "last stage", "last half")  # a prefix is frozen for the whole run: FeatureCache gives the same bits
_LIMITS = 1e-7, 10.0


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    Args:
        way: a name from `WAYS`.
        norm: "eval" or "train": the mode of normalisation statistics; "" for a model without them.
        rate: learning rate at the start; if stages have different rates, that of the head.
    """

    way: str
    norm: str
    rate: float

    @property
    def title(self) -> str:
        return f"{self.way}, BatchNorm {self.norm}" if self.norm else self.way

    def specs(self, stages: Sequence[Stage], *, cached: bool = False) -> list[Spec]:
        """The callbacks; with `cached`, also a FeatureCache, which makes a race faster and changes no bits."""
        found = callbacks_of(self.way, stages, self.norm)
        fast = cached and self.way in CACHED and self.norm != "train" and len(stages) > 1
        return [*found, spec("FeatureCache", verbose=False)] if fast else found


def on_scale(rate: float) -> float:
    """Round a rate to the nearest of ..., 0.001, 0.003, 0.01, 0.03, ...

    Examples:
        >>> on_scale(0.0047), on_scale(0.0079)
        (0.003, 0.01)
    """
    power, rest = divmod(round(2 * math.log10(min(max(rate, _LIMITS[0]), _LIMITS[1]))), 2)
    return float(f"{(3 if rest else 1)}e{power}")


def neighbours(candidate: Candidate) -> list[Candidate]:
    """The candidates with a rate lower and higher by a factor of 3."""
    return [
        Candidate(candidate.way, candidate.norm, on_scale(candidate.rate * factor)) for factor in (10**-0.5, 10**0.5)
    ]


def entries(turning: float, has_norm: bool, stages: int) -> list[Candidate]:
    """The candidates, the most promising first: each way at one rate, then at a lower and a higher one.

    Args:
        turning: the rate at which the loss began to rise in a range test of full fine-tuning.
        has_norm: whether there are normalisation layers with running statistics.
        stages: number of stages; with one there is nothing to freeze.
    """
    rates = [(way, "eval" if has_norm else "", factor) for way, factor in ORDER.items()]
    rates[6:6] = [(way, "train", factor) for way, factor in TRAIN_MODE.items() if has_norm]
    if stages < 2:
        rates = [one for one in rates if one[0] == "all"]
    first = [Candidate(way, norm, on_scale(FULL * turning * factor)) for way, norm, factor in rates]
    return list(dict.fromkeys([*first, *(near for one in first for near in neighbours(one))]))
