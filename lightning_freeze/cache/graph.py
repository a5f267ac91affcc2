"""The graph of a step's computations in frozen modules: leaves, operations and their results.

Operations of many steps have the same `Kind` if they apply the same function to the same kinds of inputs, with the same
weights and settings. Rows are stored by kind.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.lazy import Lazy
from lightning_freeze.cache.row_keys import row_keys
from lightning_freeze.cache.seal import version_of
from lightning_freeze.cache.shelf import Shelf
from lightning_freeze.errors import FreezeError

_COPIED = 1 << 18  # bytes; smaller inputs are copied, so that the step may write into them


@dataclass(frozen=True)
class Facts:
    """The facts about a result that are known without its values.

    Attributes:
        shape, stride, dtype, device: as in a tensor.
        rows_dim: the dimension of the rows; None: there are no rows, and the result is stored as a whole.
        view: index of the input tensor that it shares memory with.
        same: index of the input tensor that it is identical with.
        offset: storage offset.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    rows_dim: int | None
    view: int | None = None
    same: int | None = None
    offset: int = 0


@dataclass(eq=False)
class Kind:
    """The common properties of operations in many steps.

    Attributes:
        key: the key that identifies the kind.
        name: name of the module that it comes from.
        born: the step in which it was first seen; its rows are stored from the next step on.
        token: token of the part's state; 0 for a function.
        before: kinds of its inputs.
        facts: number of rows -> facts of its results, and the record of their tree.
        rows_dims: number of rows -> dimension of the rows in the result of a function; None: rows are not separate.
        shelves: result -> its stored rows.
        targets: needed results that depend on it -> places of their leaves among its own, if it has all of them.
        joins: whether data other than results are among its inputs.
        barred: whether its rows are not stored.
    """

    key: Hashable
    name: str
    born: int
    token: int = 0
    before: tuple[Kind, ...] = ()
    last: int = 0
    facts: dict[int, tuple[list[Facts], Any]] = field(default_factory=dict)
    rows_dims: dict[int, int | None] = field(default_factory=dict)
    shelves: dict[int, Shelf] = field(default_factory=dict)
    targets: dict[tuple[Kind, int], tuple[int, ...] | None] = field(default_factory=dict)
    joins: bool = False
    barred: bool = False


class Leaf:
    """An input tensor of the frozen part.

    Args:
        tensor: the tensor.
        batch: number of rows of the step's batch.
    """

    def __init__(self, tensor: Tensor, batch: int | None) -> None:
        self.tensor, self.version = tensor, version_of(tensor)
        self.rows_dim = _rows_dim(tensor.shape, batch)
        self.rows = 1 if self.rows_dim is None else tensor.shape[self.rows_dim]
        self._keys: Tensor | None = None
        self._listed: list[tuple[int, int]] | None = None
        self._copy: Tensor | None = None
        self._some: dict[tuple[int, ...], Tensor] = {}

    @property
    def keys(self) -> Tensor:
        """The keys of the rows, shape `(rows, 2)`, on the CPU."""
        if self._keys is None:
            self._keys = self._checksums().cpu()
        return self._keys

    @property
    def has_keys(self) -> bool:
        """Whether keys are known or can still be computed, because the tensor was not written since."""
        return self._keys is not None or version_of(self.tensor) == self.version

    @property
    def _written(self) -> bool:
        if self.tensor.is_inference():  # torch does not count writes into it
            return not torch.equal(self._checksums().cpu(), self.keys)
        return version_of(self.tensor) != self.version

    def _checksums(self) -> Tensor:
        tensor = self.tensor
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            return row_keys(
                [tensor.unsqueeze(0) if self.rows_dim is None else tensor.movedim(self.rows_dim, 0)], self.rows
            )

    def describe(self, place: int) -> Hashable:
        """The properties that leaves of one kind have in common."""
        tensor, dim = self.tensor, self.rows_dim
        shape = tuple(size for k, size in enumerate(tensor.shape) if k != dim)
        strides = True if tensor.is_contiguous() else tensor.stride()
        return "leaf", place, tensor.dtype, tensor.device, dim, shape, strides, tensor.is_conj(), tensor.is_neg()

    def value(self) -> Tensor:
        """The tensor with its original values.

        Raises:
            FreezeError: it was written since, and was too large to be copied.
        """
        if not self._written:
            return self.tensor
        if self._copy is None:
            raise FreezeError(
                "FeatureCache: a step writes into a tensor that went into the frozen part, and needs a value of the "
                "frozen part from before that it did not need in earlier steps.\n  Write into a clone of it"
            )
        return self._copy

    def secure(self, places: Sequence[int] = ()) -> None:
        """Called when work on this tensor is deferred: keep what may be needed later."""
        if places:
            self.some(places)
        if self._copy is None and self.tensor.numel() * self.tensor.element_size() <= _COPIED:
            self._copy = self.tensor.detach().clone(memory_format=torch.preserve_format)

    def some(self, places: Sequence[int]) -> Tensor:
        """Some of its rows."""
        if self.rows_dim is None:
            return self.value()
        key = tuple(places)
        if key not in self._some:
            index = torch.tensor(key, device=self.tensor.device)
            picked = self.value().detach().index_select(self.rows_dim, index)
            if not self.tensor.is_contiguous():
                picked = _with_order(picked, self.tensor)
            self._some[key] = picked
        return self._some[key]


def _with_order(tensor: Tensor, like: Tensor) -> Tensor:
    """Copy a tensor with the memory order of another tensor with the same number of dimensions."""
    order = sorted(range(like.dim()), key=lambda dim: -like.stride()[dim])
    return tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(like.dim())])


def _rows_dim(shape: Sequence[int], batch: int | None) -> int | None:
    if not shape or not shape[0]:
        return None
    if batch is None:
        return 0 if len(shape) > 1 else None
    if shape[0] == batch:
        return 0
    if len(shape) > 1 and shape[1] == batch:
        return 1
    return 0 if shape[0] % batch == 0 else None


@dataclass(eq=False)
class Op:
    """One call of a module or function.

    Attributes:
        kind: its kind.
        function: runs it on real tensors.
        spec: the record of its arguments, see `trees`.
        inputs: the tensors in its arguments: nodes, leaves and constants.
        leaves: all leaves that it depends on, in order of appearance.
        rows: number of rows; 1 if there are none.
        conditions: settings of torch at the call.
        valid: returns whether its weights are unchanged.
    """

    kind: Kind
    function: Any
    spec: Any
    inputs: list[Node | Leaf | Tensor]
    leaves: tuple[Leaf, ...]
    rows: int
    conditions: tuple[Any, ...]
    valid: Any

    @property
    def nodes(self) -> Iterator[Node]:
        """Its inputs that are results of other operations."""
        return (one for one in self.inputs if isinstance(one, Node))

    @property
    def facts(self) -> list[Facts]:
        """The facts of its results."""
        return self.kind.facts[self.rows][0]


class Node:
    """A result of an operation.

    Attributes:
        op, place: the operation, and the index among its results.
        reference: weak reference to the step's tensor.
        version: version of the values.
        above: the result that it is a view of; None if it has its own memory.
        views: its views.
    """

    __slots__ = ("__weakref__", "above", "op", "place", "reference", "version", "views")

    def __init__(self, op: Op, place: int, root: Node | None = None) -> None:
        self.op, self.place, self.version = op, place, -1
        self.reference: weakref.ref[Tensor] | None = None
        self.above = root
        self.views: list[weakref.ref[Node]] = []
        if root is not None:
            root.views.append(weakref.ref(self))

    @property
    def facts(self) -> Facts:
        """Its facts."""
        return self.op.facts[self.place]

    @property
    def root(self) -> Node:
        """The result that owns its memory."""
        return self.above or self

    def family(self) -> list[Node]:
        """The other results in the same memory whose tensors are alive."""
        found = [self.root, *[node for one in self.root.views if (node := one()) is not None]]
        return [node for node in found if node is not self and node.alive() is not None]

    def alive(self) -> Tensor | None:
        """The step's tensor: a lazy one, or one that has become plain."""
        return self.reference() if self.reference is not None else None

    def memory(self) -> Tensor | None:
        """The tensor with its values, including later writes."""
        tensor = self.alive()
        return tensor.held if isinstance(tensor, Lazy) else tensor

    @property
    def written(self) -> bool:
        """Whether its values have been written."""
        tensor = self.alive()
        memory = tensor.held if isinstance(tensor, Lazy) else tensor
        if memory is not None and memory is tensor and memory.is_inference():
            return True  # possibly: torch does not count writes into it, and the step has the tensor
        return memory is not None and version_of(memory) != self.version

    @property
    def clean(self) -> bool:
        """Whether neither its values nor other results in the same memory have been written."""
        return not self.written and not any(one.written for one in self.family())

    def present(self) -> Tensor | None:
        """Its values, if they exist and have not been written."""
        tensor = self.memory()
        if tensor is None or self.written:
            return None
        return tensor.detach() if tensor.requires_grad else tensor
