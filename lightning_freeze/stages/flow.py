"""The depth of each unit of a model: its distance from the loss, in units.

The depth of a unit is the longest path from the loss to it; with residual connections, the shortest path would be the
same for all blocks. Units on a cycle (two modules that call each other's layers in turn) share a depth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass
class Flow:
    """The data flow of one forward.

    Attributes:
        below: node -> the nodes that it was computed from; their numbers are smaller.
        uses: node -> names of the parameters that are first combined with data there.
    """

    below: list[tuple[int, ...]] = field(default_factory=list)
    uses: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def add(self, below: Iterable[int], uses: Iterable[str] = ()) -> int:
        """Add a node, and return its number."""
        self.below.append(tuple(below))
        if names := tuple(uses):
            self.uses[len(self.below) - 1] = names
        return len(self.below) - 1


def first_uses(flow: Flow) -> dict[int, tuple[str, ...]]:
    """The uses of each parameter that have no other use of it below them.

    A head that shares its weight with the embedding counts at the embedding; a block that is applied to its own
    output counts once; a network that processes two inputs side by side counts at both.
    """
    counts = Counter(name for names in flow.uses.values() for name in names)
    bit = {name: 1 << place for place, name in enumerate(name for name, count in counts.items() if count > 1)}
    if not bit:
        return flow.uses
    masks: list[int] = []
    kept: dict[int, tuple[str, ...]] = {}
    for node, below in enumerate(flow.below):
        mask = 0
        for lower in below:
            mask |= masks[lower]
        if names := flow.uses.get(node):
            kept[node] = tuple([name for name in names if not bit.get(name, 0) & mask])
            for name in names:
                mask |= bit.get(name, 0)
        masks.append(mask)
    return kept


def depths(flow: Flow, unit_of: Mapping[str, int], solid: Collection[int]) -> dict[int, int]:
    """The distance of each unit from the loss: 0 for the head.

    Args:
        flow: the data flow; the losses, or nodes without a successor, have the largest numbers.
        unit_of: parameter name -> number of its unit.
        solid: units with a weight matrix. Only these add to the distance; norms and tokens get a depth as well.

    Returns:
        The depths of the units in the flow.

    Examples:
        >>> flow = Flow()
        >>> stem = flow.add([], ["stem"])
        >>> left, right = flow.add([stem], ["left"]), flow.add([stem], ["right"])
        >>> head = flow.add([left, right], ["head"])
        >>> sorted(depths(flow, {"stem": 0, "left": 1, "right": 2, "head": 3}, range(4)).items())
        [(0, 2), (1, 1), (2, 1), (3, 0)]
    """
    above = _above(flow, unit_of, frozenset(solid))
    found: dict[int, int] = {}
    for component in _components(above):
        higher = [found[unit] for member in component for unit in above[member] if unit in found]
        depth = 1 + max(higher, default=-1)
        found.update(dict.fromkeys(component, depth))
    return found


def _above(flow: Flow, unit_of: Mapping[str, int], solid: frozenset[int]) -> dict[int, set[int]]:
    """Unit -> the next units on its paths to the loss."""
    uses = first_uses(flow)
    above: dict[int, set[int]] = {}
    passed: list[frozenset[int] | None] = [None] * len(flow.below)  # the last units on the paths down to a node
    nothing: frozenset[int] = frozenset()
    for node in range(len(flow.below) - 1, -1, -1):
        last = passed[node] or nothing
        here = {unit_of[name] for name in uses.get(node, ()) if name in unit_of}
        for unit in here:
            above.setdefault(unit, set()).update(last - {unit})
        onward = frozenset(here & solid) or last
        for lower in flow.below[node]:
            before = passed[lower]
            if before is None or before is onward:
                passed[lower] = onward
            elif before != onward:
                passed[lower] = _nearest(before | onward, above)
        passed[node] = None
    return above


def _nearest(units: frozenset[int], above: Mapping[int, set[int]]) -> frozenset[int]:
    """Remove units above another unit of the set: the longest path leads through that other unit."""
    left = set(units)
    for unit in units:
        if unit in left and len(left) > 1:
            left -= above.get(unit, set())
            left.add(unit)
    return frozenset(left)


def _components(above: Mapping[int, Collection[int]]) -> Iterator[list[int]]:
    """Strongly connected components, each after all components above it (Tarjan, 1972)."""
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    waiting: set[int] = set()
    for start in above:
        path: list[tuple[int, Iterator[int]]] = [] if start in number else [(start, iter(above[start]))]
        while path:
            unit, rest = path[-1]
            if unit not in number:
                number[unit] = lowest[unit] = len(number)
                stack.append(unit)
                waiting.add(unit)
            following = next(rest, None)
            if following is not None:
                if following not in number:
                    path.append((following, iter(above.get(following, ()))))
                elif following in waiting:
                    lowest[unit] = min(lowest[unit], number[following])
                continue
            path.pop()
            if path:
                lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[unit])
            if lowest[unit] == number[unit]:
                yield _popped(stack, waiting, unit)


def _popped(stack: list[int], waiting: set[int], root: int) -> list[int]:
    component: list[int] = []
    while not component or component[-1] != root:
        component.append(stack.pop())
    waiting.difference_update(component)
    return component
