"""Split arguments and results into a list of tensors and a hashable record of everything else."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, str, bytes, type(None), type(Ellipsis))
_TOKENS = (
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    nn.Module,
)
TENSOR, ROWS = "tensor", "rows"  # placeholders for a tensor, and for a number equal to the number of rows


class Unknown(Exception):
    """An argument that cannot be split, because its content is unknown."""


def flatten(tree: Any, tensors: list[Tensor], rows: int | None = None, mutable: bool = False) -> Hashable:
    """Append the tensors of a tree to `tensors`, and return a record that is equal for trees with other tensors.

    Args:
        tree: tensors and plain values in tuples, lists, dicts, and objects with such attributes.
        tensors: a list that the tensors are appended to.
        mutable: whether to accept lists, dicts and objects, which can be modified.
        rows: integers of this value become placeholders, so that batches of other sizes have equal records.

    Raises:
        Unknown: the tree contains something else.

    Examples:
        >>> found = []
        >>> flatten((torch.ones(2), 2.0), found) == flatten((torch.zeros(3), 2.0), found), len(found)
        (True, 2)
    """
    cls = type(tree)
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return TENSOR
    if cls is tuple or cls is torch.Size or (cls is list and mutable):
        return (cls, *[flatten(part, tensors, rows, mutable) for part in tree])
    if cls is int and tree == rows and rows is not None:
        return (ROWS,)
    if cls in _PLAIN:
        return cls, tree
    if cls is float or cls is complex:
        return cls, repr(tree)
    if cls is dict and mutable:
        return (dict, tuple(tree), *[flatten(part, tensors, rows, mutable) for part in tree.values()])
    if cls is slice:
        return (slice, *[flatten(part, tensors, rows, mutable) for part in (tree.start, tree.stop, tree.step)])
    if isinstance(tree, _TOKENS):
        return "same", Same(tree)
    return _flatten_object(tree, tensors, rows, mutable)


def _flatten_object(tree: Any, tensors: list[Tensor], rows: int | None, mutable: bool) -> Hashable:
    cls: Any = type(tree)
    if not mutable and not isinstance(tree, tuple):
        raise Unknown(f"{cls.__name__}")
    if isinstance(tree, tuple):  # a namedtuple, or what torch returns (torch.return_types)
        return ("tuple", cls, *[flatten(part, tensors, rows, mutable) for part in tree])
    if isinstance(tree, dict):
        return ("mapping", cls, tuple(tree), *[flatten(part, tensors, rows, mutable) for part in tree.values()])
    parts = getattr(tree, "__dict__", None)
    if not parts or callable(tree) or isinstance(tree, types.ModuleType | Iterator) or _has_slots(cls):
        raise Unknown(f"{cls.__name__}")
    return ("object", cls, tuple(parts), *[flatten(part, tensors, rows, mutable) for part in parts.values()])


def _has_slots(cls: type) -> bool:
    return any(vars(one).get("__slots__") for one in cls.__mro__)


@dataclasses.dataclass(frozen=True, eq=False)
class Same:
    """An object that is compared by identity, and kept alive so that its id is not reused."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def rebuild(spec: Any, tensors: Iterator[Any], rows: int | None = None) -> Any:
    """Rebuild the tree of a record with other tensors.

    Examples:
        >>> found = []
        >>> spec = flatten([torch.ones(1), "mode"], found, mutable=True)
        >>> rebuild(spec, iter([torch.zeros(1)]))
        [tensor([0.]), 'mode']
    """
    if spec is TENSOR or spec == TENSOR:
        return next(tensors)
    kind = spec[0]
    if kind == ROWS:
        return rows
    if kind in _PLAIN:
        return spec[1]
    return _BUILDERS[kind](
        spec, [rebuild(part, tensors, rows) for part in spec[_FIRST.get(kind, 1) :]] if kind in _FIRST else []
    )


def _build_object(spec: Any, parts: list[Any]) -> Any:
    made = object.__new__(spec[1])
    made.__dict__.update(zip(spec[2], parts, strict=True))
    return made


def _build_tuple(spec: Any, parts: list[Any]) -> Any:
    return spec[1](*parts) if hasattr(spec[1], "_fields") else spec[1](parts)


def _build_mapping(spec: Any, parts: list[Any]) -> Any:
    pairs = dict(zip(spec[2], parts, strict=True))
    cls: Any = spec[1]
    return cls(**pairs) if dataclasses.is_dataclass(spec[1]) else cls(pairs)


# The index of the first part in a record, by type.
_FIRST = {tuple: 1, list: 1, torch.Size: 1, slice: 1, dict: 2, "tuple": 2, "mapping": 3, "object": 3}
_BUILDERS: dict[Any, Callable[[Any, list[Any]], Any]] = {
    tuple: lambda spec, parts: tuple(parts),
    list: lambda spec, parts: parts,
    torch.Size: lambda spec, parts: torch.Size(parts),
    slice: lambda spec, parts: slice(*parts),
    dict: lambda spec, parts: dict(zip(spec[1], parts, strict=True)),
    float: lambda spec, parts: float(spec[1]),
    complex: lambda spec, parts: complex(spec[1]),
    "same": lambda spec, parts: spec[1].value,
    "tuple": _build_tuple,
    "mapping": _build_mapping,
    "object": _build_object,
}
