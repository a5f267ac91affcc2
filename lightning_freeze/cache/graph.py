"""What a step computes from frozen modules, as it happens: leaves, operations and their results.

A `Kind` is what operations of many steps have in common: the same function of the same kinds of things, with the
same weights and settings. Rows are kept by kind.
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

_COPIED = 1 << 18  # bytes of an input that is copied, so that it may be written into


@dataclass(frozen=True)
class Facts:
    """What is known of a result beside its values.

    Attributes:
        shape, stride, dtype, device: as of a tensor.
        rows_dim: the dimension of the rows; None: it has none, and is kept as a whole.
        view: which of the tensors that went in it shares memory with.
        same: which of them it is.
        offset: in that memory.
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
    """What operations of many steps have in common.

    Attributes:
        key: all of this.
        name: of the module it comes from.
        born: the step that it was first seen in; nothing is kept of it before the next.
        token: of the part's state, 0 for a function.
        before: kinds of what goes in.
        facts: rows -> what its results are, and the record of the tree they are in.
        rows_dims: rows -> where a function leaves the rows; None: it does not keep them apart.
        shelves: result -> its rows.
        targets: results that are needed of what is made of it -> where their leaves are among its own, if all are.
        joins: other data come in, beside results.
        barred: it is not kept.
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
    """A tensor that goes into the frozen part.

    Args:
        tensor: any.
        batch: rows of the batch that the step is given.
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
        """`(rows, 2)`, on the CPU."""
        if self._keys is None:
            self._keys = self._checksums().cpu()
        return self._keys

    @property
    def has_keys(self) -> bool:
        """Whether keys are there, or can be had: it was not written since."""
        return self._keys is not None or version_of(self.tensor) == self.version

    @property
    def _written(self) -> bool:
        if self.tensor.is_inference():  # torch counts no writes into it
            return not torch.equal(self._checksums().cpu(), self.keys)
        return version_of(self.tensor) != self.version

    def _checksums(self) -> Tensor:
        tensor = self.tensor
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            return row_keys(
                [tensor.unsqueeze(0) if self.rows_dim is None else tensor.movedim(self.rows_dim, 0)], self.rows
            )

    def describe(self, place: int) -> Hashable:
        """What leaves of one kind agree in."""
        tensor, dim = self.tensor, self.rows_dim
        shape = tuple(size for k, size in enumerate(tensor.shape) if k != dim)
        strides = True if tensor.is_contiguous() else tensor.stride()
        return "leaf", place, tensor.dtype, tensor.device, dim, shape, strides, tensor.is_conj(), tensor.is_neg()

    def value(self) -> Tensor:
        """The tensor as it was.

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
        """Work on this tensor is put off: keep what may be needed of it."""
        if places:
            self.some(places)
        if self._copy is None and self.tensor.numel() * self.tensor.element_size() <= _COPIED:
            self._copy = self.tensor.detach().clone(memory_format=torch.preserve_format)

    def some(self, places: Sequence[int]) -> Tensor:
        """Some rows."""
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
    """The same numbers, laid out in memory in the order of another tensor of as many dimensions."""
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
        kind: what it is.
        function: runs it, on real tensors.
        spec: the arguments, see `trees`.
        inputs: their tensors: nodes, leaves and constants.
        leaves: all that it hangs on, in order of appearance.
        rows: how many; 1 for what has none.
        conditions: what was set in torch when it was called.
        valid: whether its weights are still what they were.
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
        """The results that go in."""
        return (one for one in self.inputs if isinstance(one, Node))

    @property
    def facts(self) -> list[Facts]:
        """Of its results."""
        return self.kind.facts[self.rows][0]


class Node:
    """A result of an operation.

    Attributes:
        op, place: which.
        reference: to the tensor that the step has of it; it may be dead.
        version: of the values.
        above: the result that it is a view of; None, if it has memory of its own.
        views: of it.
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
        """Of it."""
        return self.op.facts[self.place]

    @property
    def root(self) -> Node:
        """The result whose memory it is in."""
        return self.above or self

    def family(self) -> list[Node]:
        """The other results that share its memory, of which the step has a tensor."""
        found = [self.root, *[node for one in self.root.views if (node := one()) is not None]]
        return [node for node in found if node is not self and node.alive() is not None]

    def alive(self) -> Tensor | None:
        """The tensor that the step has of it: a lazy one, or one that has become plain."""
        return self.reference() if self.reference is not None else None

    def memory(self) -> Tensor | None:
        """The tensor with its values, whoever has written into them."""
        tensor = self.alive()
        return tensor.held if isinstance(tensor, Lazy) else tensor

    @property
    def written(self) -> bool:
        """Whether somebody has written into its values."""
        tensor = self.alive()
        memory = tensor.held if isinstance(tensor, Lazy) else tensor
        if memory is not None and memory is tensor and memory.is_inference():
            return True  # perhaps: torch counts no writes into it, and the step has it
        return memory is not None and version_of(memory) != self.version

    @property
    def clean(self) -> bool:
        """Whether nobody has written into its values, or into what shares memory with them."""
        return not self.written and not any(one.written for one in self.family())

    def present(self) -> Tensor | None:
        """Its values, if they are there and nobody has written into them."""
        tensor = self.memory()
        if tensor is None or self.written:
            return None
        return tensor.detach() if tensor.requires_grad else tensor
