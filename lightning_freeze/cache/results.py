"""The facts about the results of an operation."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_freeze.cache.graph import Facts, Node, Op


def facts_of(op: Op, values: list[Tensor], results: list[Tensor]) -> list[Facts] | None:
    """The facts about results; None if they cannot be stored.

    Args:
        op: the operation.
        values: its input tensors.
        results: its result tensors.
    """
    if len({id(one) for one in results}) < len(results):
        return None
    memory = {one.untyped_storage().data_ptr(): place for place, one in reversed([*enumerate(values)])}
    found = []
    for result in results:
        if not _is_plain(result):
            return None
        view = memory.get(result.untyped_storage().data_ptr()) if result.numel() else None
        if view is not None and not isinstance(op.inputs[view], Node):
            return None
        dim = _rows_dim(op, result)
        if dim is None and op.kind.rows_dims:
            return None
        same = next((place for place, value in enumerate(values) if value is result), None)
        shape, stride = tuple(result.shape), tuple(result.stride())
        found.append(Facts(shape, stride, result.dtype, result.device, dim, view, same, int(result.storage_offset())))
    return found


def _is_plain(result: Tensor) -> bool:
    """Whether it is an ordinary tensor that requires no gradient and has no expanded dimension."""
    plain = type(result) is Tensor and not result.requires_grad and result.layout == torch.strided
    return plain and not any(step == 0 and size > 1 for step, size in zip(result.stride(), result.shape, strict=True))


def _rows_dim(op: Op, result: Tensor) -> int | None:
    if (dim := op.kind.rows_dims.get(op.rows)) is not None:
        return dim if result.dim() > dim and result.shape[dim] == op.rows else None
    if all(leaf.rows_dim is None for leaf in op.leaves):
        return None
    return next((dim for dim in (0, 1) if result.dim() > dim and result.shape[dim] == op.rows), None)
