"""Turn units into levels, and levels into stages: tokens, norms and single layers join a neighbour.

All lists follow the order of execution, input first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import accumulate, pairwise
from operator import or_

import torch


@dataclass(frozen=True)
class Unit:
    """Parameters that are always in the same stage.

    Attributes:
        labels: the modules (or parameters) that it is named after, in order of use.
        names: canonical names of its parameters.
        size: number of elements of its parameters.
        first: time of its first use; infinite if it is unused.
        last: time at which the last of its parameters is first used.
        bits: mask of its parameters (see `Usage.inputs`).
        inputs: mask of the sources of its input data; 0 if unknown.
        weights: number of weight matrices; 0 for a norm, a scale or a token.
        width: input and output width, if it is a single linear layer.
        repeats: whether it is a repeated block.
        listed: whether it is an element of a list of single layers, as in VGG.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    size: int
    first: float
    last: float
    bits: int
    inputs: int
    weights: int
    width: tuple[int, int] | None
    repeats: bool = False
    listed: bool = False

    @property
    def is_layer(self) -> bool:
        """Whether it is a single layer, like a stem convolution or patch merging; not a block, not in a list."""
        return self.weights == 1 and not self.listed

    def apart(self, other: Unit) -> bool:
        """Whether two units work side by side (heads, branches, experts), not one after the other.

        They do if their inputs have a common source and neither feeds the other. Without a forward, two linear layers
        work side by side if their input widths are equal and they cannot be chained.
        """
        if self.inputs and other.inputs:
            return bool(self.inputs & other.inputs) and not (self.bits & other.inputs or other.bits & self.inputs)
        if self.width and other.width and self.first == other.first == math.inf:
            return self.width[0] == other.width[0] and self.width[0] not in (self.width[1], other.width[1])
        return False


@dataclass(frozen=True)
class Level:
    """Units at the same distance from the loss, with the neighbours that joined them.

    Attributes:
        units: all units.
        labels: the modules (or parameters) that the level is named after.
    """

    units: tuple[Unit, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, units: Sequence[Unit]) -> Level:
        """Make a level of units, named after those with a weight matrix."""
        named = [unit for unit in units if unit.weights] or list(units)
        return cls(tuple(units), tuple(label for unit in named for label in unit.labels))

    def absorb(self, *others: Level) -> Level:
        """A level with the units of neighbours added and the same name."""
        return replace(self, units=(*self.units, *(unit for other in others for unit in other.units)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The canonical names of its parameters."""
        return tuple(name for unit in self.units for name in unit.names)

    @cached_property
    def size(self) -> int:
        """The number of elements of its parameters."""
        return sum(unit.size for unit in self.units)

    @cached_property
    def has_weights(self) -> bool:
        """Whether it contains a weight matrix."""
        return any(unit.weights for unit in self.units)

    @cached_property
    def repeats(self) -> bool:
        """Whether it contains a repeated block."""
        return any(unit.repeats for unit in self.units)

    @cached_property
    def is_layer(self) -> bool:
        """Whether it consists of single layers."""
        return self.has_weights and all(unit.is_layer for unit in self.units if unit.weights)


def merge(levels: Sequence[Level]) -> Level:
    """Merge neighbours into one level, named after all of them."""
    whole = levels[0].absorb(*levels[1:])
    return replace(whole, labels=tuple(label for level in levels for label in level.labels))


def union(masks: Iterable[int]) -> int:
    """The bitwise or of all masks."""
    return reduce(or_, masks, 0)


def join(levels: Sequence[Level], above: Sequence[Level] = ()) -> list[Level]:
    """Let levels of norms and single layers join a neighbour, and form the stem and the head.

    Args:
        levels: the levels, input first, head last.
        above: units that were not called and are registered after the head.
    """
    levels = _attach(levels)
    stop = len(levels) - 1 + levels[-1].repeats  # a backbone without a head ends with a block
    body = _join_layers(_merge_stem(levels[:stop]))
    return _attach([*body, *levels[stop:], *above])


def _attach(levels: Sequence[Level]) -> list[Level]:
    """Merge levels without a weight matrix into their predecessor; those at the start into their successor."""
    start = next((k for k, level in enumerate(levels) if level.has_weights), len(levels))
    if start == len(levels):
        return [merge(levels)]
    found = [levels[start].absorb(*levels[:start])]
    for level in levels[start + 1 :]:
        if level.has_weights:
            found.append(level)
        else:
            found[-1] = found[-1].absorb(level)
    return found


def _merge_stem(levels: list[Level]) -> list[Level]:
    """Merge the single layers before the first repeated block into the stem."""
    if not any(level.repeats for level in levels):
        return levels
    stop = next((k for k, level in enumerate(levels) if not level.is_layer and (k or level.repeats)), len(levels))
    return [merge(levels[:stop]), *levels[stop:]] if stop > 1 else levels


def _join_layers(levels: list[Level]) -> list[Level]:
    """Merge a single layer into the repeated block after it, else before it, if it is smaller than the block."""
    for place in range(len(levels) - 2, 0, -1):
        if _fits(levels[place], levels[place + 1]):
            levels[place : place + 2] = [levels[place + 1].absorb(levels[place])]
    joined = levels[:1]
    for level in levels[1:]:
        if _fits(level, joined[-1]):
            joined[-1] = joined[-1].absorb(level)
        else:
            joined.append(level)
    return joined


def _fits(layer: Level, block: Level) -> bool:
    return layer.is_layer and block.repeats and layer.size < block.size


def balance(levels: list[Level], most: int) -> list[Level]:
    """Merge neighbours into at most `count` levels, with the least sum of squared sizes.

    With three levels or more, the head stays alone, so that training can start with a new head only.
    """
    if len(levels) <= most:
        return levels
    if most >= 3:
        return [*_balanced(levels[:-1], most - 1), levels[-1]]
    return _balanced(levels, most)


def _balanced(levels: list[Level], most: int) -> list[Level]:
    while len(levels) > 1000:  # the dynamic programming table below is quadratic
        levels = [merge(levels[k : k + 2]) for k in range(0, len(levels), 2)]
    ends = torch.tensor([0, *accumulate(level.size for level in levels)], dtype=torch.float64, device="cpu")
    sizes = (ends[None, :] - ends[:, None]) / max(float(ends[-1]), 1.0)
    cost = sizes.square().masked_fill(torch.ones_like(sizes).tril().bool(), float("inf"))
    best, cuts = cost[0], []
    for _ in range(most - 1):
        best, cut = (best[:, None] + cost).min(dim=0)
        cuts.append(cut)
    bounds = [len(levels)]
    for cut in reversed(cuts):
        bounds.append(int(cut[bounds[-1]]))
    bounds = [0, *reversed(bounds)]
    return [merge(levels[start:stop]) for start, stop in pairwise(bounds)]
