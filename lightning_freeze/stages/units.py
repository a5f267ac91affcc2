"""Units of a model become stages: tokens, norms and single layers join a neighbour, then neighbours are balanced.

Everything here is in order of use, the input first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate, pairwise
from operator import or_

import torch

from lightning_freeze.stages.usage import FROM_INPUT


@dataclass(frozen=True)
class Unit:
    """Parameters that are always in the same stage.

    Attributes:
        labels: the modules (or parameters) that give it its name, in order of use.
        names: canonical names of its parameters.
        size: number of elements of its parameters.
        first: when it is first used; infinite when it is not.
        last: when the last of its parameters is first used.
        bits: mask of its parameters (see `Usage.inputs`).
        inputs: mask of what had gone into the data it works on; 0 when unknown.
        weights: number of weight matrices; 0 for a norm, a scale or a token.
        width: input and output width of the one linear layer it is.
        repeats: it is a block, and the model has others like it.
        listed: it is an element of a list of single layers, as in VGG.
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

    def absorb(self, *others: Unit) -> Unit:
        """This unit with the parameters of neighbours; its name stays."""
        names = [name for other in others for name in other.names]
        return replace(
            self,
            names=(*self.names, *names),
            size=self.size + sum(other.size for other in others),
            bits=union(unit.bits for unit in (self, *others)),
        )

    @property
    def is_layer(self) -> bool:
        """A layer on its own, like a stem convolution or a patch merging: no block, and not one of a list."""
        return self.weights == 1 and not self.listed

    def apart(self, other: Unit) -> bool:
        """Whether two units work side by side (heads, branches, experts) and not one after the other.

        They do when they share an origin and neither went into the other's input. Two linear layers that no forward
        showed do when they read the same width and cannot be chained.
        """
        if self.inputs and other.inputs:
            return bool(self.inputs & other.inputs) and not (self.bits & other.inputs or other.bits & self.inputs)
        if self.width and other.width and self.first == other.first == math.inf:
            return self.width[0] == other.width[0] and self.width[0] not in (self.width[1], other.width[1])
        return False


def merge(units: Sequence[Unit]) -> Unit:
    """Neighbours as one unit, named after all of them."""
    whole = units[0].absorb(*units[1:])
    return replace(whole, labels=tuple(label for unit in units for label in unit.labels))


def union(masks: Iterable[int]) -> int:
    """All bits that are in any of the masks."""
    return reduce(or_, masks, 0)


def join(units: Sequence[Unit]) -> list[Unit]:
    """Tokens, norms and single layers join a neighbour; the head and the stem are found."""
    units = _attach(units)
    body, head = _split_head(units)
    return [*_join_layers(_merge_stem(body)), *head]


def _attach(units: Sequence[Unit]) -> list[Unit]:
    """Units without a weight matrix (norms, scales, tokens) join their predecessor, the first ones their successor."""
    start = next((k for k, unit in enumerate(units) if unit.weights), len(units))
    if start == len(units):
        return [merge(units)]
    found = [units[start].absorb(*units[:start])]
    for unit in units[start + 1 :]:
        if unit.weights:
            found.append(unit)
        else:
            found[-1] = found[-1].absorb(unit)
    return found


def _split_head(units: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
    """The body, and the heads: what is used last with all that works beside it, then what was not used at all."""
    stop = max((k for k, unit in enumerate(units, start=1) if unit.first < math.inf), default=len(units))
    start = stop - 1
    while start and all(units[start - 1].apart(head) for head in units[start:stop]):
        start -= 1
    if start == stop - 1 and units[start].repeats:  # a backbone without a head ends with a block
        start = stop
    return list(units[:start]), [*([merge(units[start:stop])] if start < stop else []), *units[stop:]]


def _merge_stem(units: list[Unit]) -> list[Unit]:
    """Single layers before the first block are the stem, where blocks repeat; else the first ones that see only the
    input.
    """
    if any(unit.repeats for unit in units):
        stop = next((k for k, unit in enumerate(units) if not unit.is_layer and (k or unit.repeats)), len(units))
    else:
        stop = next((k for k, unit in enumerate(units) if unit.inputs != FROM_INPUT), len(units))
    return [merge(units[:stop]), *units[stop:]] if stop > 1 else units


def _join_layers(units: list[Unit]) -> list[Unit]:
    """A single layer joins the repeated block after it, else the one before it, when it is smaller than the block."""
    for place in range(len(units) - 2, 0, -1):
        inside = units[place - 1].first < units[place].first < units[place - 1].last
        if not inside and _fits(units[place], units[place + 1]):  # what a block uses on its way belongs to that block
            units = [*units[:place], units[place + 1].absorb(units[place]), *units[place + 2 :]]
    joined = units[:1]
    for unit in units[1:]:
        if _fits(unit, joined[-1]):
            joined[-1] = joined[-1].absorb(unit)
        else:
            joined.append(unit)
    return joined


def _fits(layer: Unit, block: Unit) -> bool:
    return layer.is_layer and block.repeats and layer.size < block.size and not layer.apart(block)


def balance(units: list[Unit], most: int) -> list[Unit]:
    """At most so many units: neighbours merged so that the sum of squared sizes is least.

    From three stages on the head stays alone: with a new head, training must be able to start with it only.
    """
    if len(units) <= most:
        return units
    if most >= 3:
        return [*_balanced(units[:-1], most - 1), units[-1]]
    return _balanced(units, most)


def _balanced(units: list[Unit], most: int) -> list[Unit]:
    while len(units) > 1000:  # the table below is quadratic
        units = [merge(units[k : k + 2]) for k in range(0, len(units), 2)]
    ends = torch.tensor([0, *accumulate(unit.size for unit in units)], dtype=torch.float64, device="cpu")
    sizes = (ends[None, :] - ends[:, None]) / max(float(ends[-1]), 1.0)
    cost = sizes.square().masked_fill(torch.ones_like(sizes).tril().bool(), float("inf"))
    best, cuts = cost[0], []
    for _ in range(most - 1):
        best, cut = (best[:, None] + cost).min(dim=0)
        cuts.append(cut)
    bounds = [len(units)]
    for cut in reversed(cuts):
        bounds.append(int(cut[bounds[-1]]))
    bounds = [0, *reversed(bounds)]
    return [merge(units[start:stop]) for start, stop in pairwise(bounds)]
