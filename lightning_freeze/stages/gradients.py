"""Read the data flow to a loss from the autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_freeze.stages.flow import Flow

# The indices of a lookup have no edge in the graph.
_LOOKUPS = ("Embedding", "EmbeddingBag", "IndexSelect")


def flow_to(losses: Sequence[Tensor], name_of: Callable[[Tensor], str | None], met_data: Mapping[Any, bool]) -> Flow:
    """The data flow that ends in these losses.

    A parameter is used where it is first combined with data, not where it is transposed, cast, expanded or normalised.

    Args:
        losses: the tensors that backward starts from; a tensor without a graph adds nothing.
        name_of: leaf of the graph -> name of the parameter.
        met_data: node of autograd -> whether data went into it beside parameters, for the nodes where this is known.
    """
    roots = list(dict.fromkeys(loss.grad_fn for loss in losses if loss.grad_fn is not None))
    return _Graph(name_of, met_data).read(roots)


class _Graph:
    def __init__(self, name_of: Callable[[Tensor], str | None], met_data: Mapping[Any, bool]) -> None:
        self.name_of, self.met_data = name_of, met_data
        self.flow = Flow()
        self.number: dict[Any, int] = {}
        self.pending: dict[Any, list[Any]] = {}  # node of parameters only -> its sources

    def read(self, roots: Sequence[Any]) -> Flow:
        for node in _inputs_first(roots):
            self._add(node)
        for root in roots:
            if root in self.pending:  # only parameters: a weight penalty
                self.flow.add((), self._names([root]))
        return self.flow

    def _add(self, node: Any) -> None:
        if type(node).__name__ == "AccumulateGrad":
            name = self.name_of(node.variable)
            if name is None:
                self.number[node] = self.flow.add(())
            else:
                self.pending[node] = [name]
            return
        lower = [child for child, _ in node.next_functions if child is not None]
        if lower and all(child in self.pending for child in lower) and not self._meets_data(node):
            self.pending[node] = lower
            return
        below = dict.fromkeys(self.number[child] for child in lower if child in self.number)
        self.number[node] = self.flow.add(below, self._names(child for child in lower if child in self.pending))

    def _meets_data(self, node: Any) -> bool:
        known = self.met_data.get(node)
        if known is not None:
            return known
        # No function was recorded here, for example in compiled code: inputs without gradient count as data.
        kind = node.name().removesuffix("0").removesuffix("Backward")
        return kind in _LOOKUPS or any(child is None for child, _ in node.next_functions)

    def _names(self, nodes: Iterable[Any]) -> list[str]:
        names: dict[str, None] = {}
        seen, waiting = set[Any](), list(nodes)
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                names[one] = None
            elif one not in seen:
                seen.add(one)
                waiting += self.pending[one]
        return list(names)


def _inputs_first(roots: Sequence[Any]) -> Iterator[Any]:
    """Yield every node of a graph after the nodes it was computed from."""
    seen = set[Any]()
    for root in roots:
        path = [] if root in seen else [(root, iter(root.next_functions))]
        seen.add(root)
        while path:
            node, rest = path[-1]
            for child, _ in rest:
                if child is not None and child not in seen:
                    seen.add(child)
                    path.append((child, iter(child.next_functions)))
                    break
            else:
                path.pop()
                yield node
