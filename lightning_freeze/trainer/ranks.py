"""Make ranks agree: all decide the same, or all raise."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.distributed as dist

from lightning_freeze.errors import FreezeError


def digest(names: Collection[str]) -> str:
    """A short hash of a set of names."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def check_agreement(trainable: Collection[str]) -> None:
    """Check that all ranks train the same parameters, before a rebuild that would hang or abort otherwise.

    Raises:
        FreezeError: they differ; raised on every rank, with the first difference.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    if len(set(_gather(digest(trainable)))) == 1:
        return
    sides = [set(names) for names in _gather(sorted(trainable))]
    for rank, side in enumerate(sides):
        if difference := sorted(side ^ sides[0]):
            name = difference[0]
            trains, frozen = (rank, 0) if name in side else (0, rank)
            raise FreezeError(
                f"ranks disagree about what trains: '{name}' ({len(difference)} parameters in all) trains on rank "
                f"{trains} and is frozen on rank {frozen}.\n  Make what decides it the same on all ranks"
            )


def _gather(value: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def any_rank(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """The flags that are set on any rank. This is a collective, with one small reduction."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(flags)
    bits = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(bits, dist.ReduceOp.MAX)
    return [bool(bit) for bit in bits.tolist()]


def from_rank_0(value: Any) -> Any:
    """Broadcast the value of rank 0 without a strategy."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]
    return value
