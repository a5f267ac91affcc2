"""Refuse FSDP2 groups with mixed dtypes at the start of a fit, instead of failing in a later stage.

`fully_shard` puts the parameters of a module into one group, and FSDP2 reduces one dtype per group. A group with
several dtypes trains until the second dtype is unfrozen; then torch raises an assertion that names no module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn

from lightning_freeze.engine.declarations import Binding
from lightning_freeze.errors import PlanError
from lightning_freeze.model.index import ModelIndex


def check_dtypes(index: ModelIndex, sharded: Iterable[nn.Module], bindings: Sequence[Binding]) -> None:
    """Check every group for every trainable set that the policies plan.

    Args:
        index: the model.
        sharded: the modules that `fully_shard` was applied to.
        bindings: one for each policy.

    Raises:
        PlanError: parameters of two dtypes in one group train at the same time.
    """
    for names in _groups(index, sharded):
        first = {(index.parameters[name].dtype, *_labels(name, bindings)): name for name in reversed(names)}
        for one, other in combinations(sorted(first.values(), key=names.index), 2):
            dtypes = {index.parameters[name].dtype for name in (one, other)}
            if len(dtypes) > 1 and _train_together(one, other, bindings):
                both = " and ".join(
                    f"'{name}' ({index.parameters[name].dtype}{_stage(name, bindings)})" for name in (one, other)
                )
                raise PlanError(
                    f"{both} are in one FSDP2 group of {len(names)} parameters and train at the same time: torch "
                    "reduces one dtype per group, and would stop at the unfreezing.\n  Apply fully_shard to the two "
                    "parts separately, give them one dtype, or pass "
                    "fully_shard(..., mp_policy=MixedPrecisionPolicy(param_dtype=...))"
                )


def _groups(index: ModelIndex, sharded: Iterable[nn.Module]) -> Iterator[list[str]]:
    """Yield the parameter names of groups with several dtypes."""
    seen: set[int] = set()
    for module in sharded:
        state: Any = module._get_fsdp_state()  # type: ignore[operator]
        several = getattr(state, "_fsdp_param_groups", None)  # since torch 2.12; one before
        for group in filter(None, [state._fsdp_param_group] if several is None else several):
            if id(group) in seen or group.mp_policy.param_dtype is not None:
                continue
            seen.add(id(group))
            found = [index.name_of(parameter.sharded_param) for parameter in group.fsdp_params]
            names = [name for name in found if name is not None and _is_float(index.parameters[name].dtype)]
            if len({index.parameters[name].dtype for name in names}) > 1:
                yield names


def _is_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _train_together(one: str, other: str, bindings: Sequence[Binding]) -> bool:
    """Whether both can train at the same time: every policy has a moment at which it freezes neither."""
    return all(
        any(one not in frozen and other not in frozen for frozen in binding.freezes)
        for binding in bindings
        if binding.freezes
    )


def _labels(name: str, bindings: Sequence[Binding]) -> list[str]:
    return [binding.labels.get(name, "") for binding in bindings]


def _stage(name: str, bindings: Sequence[Binding]) -> str:
    stages = " and ".join(f"'{label}'" for label in filter(None, _labels(name, bindings)))
    return f", stage {stages}" if stages else ""
