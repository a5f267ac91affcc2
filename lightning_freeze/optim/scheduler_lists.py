"""Re-index the per-group lists of LR schedulers when the groups of their optimizer are split.

The lists are found by attribute name, never by length: `_milestones` can have one entry per group by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_freeze.errors import OptimizerError

_RATE_LISTS = ("base_lrs", "_last_lr", "min_lrs", "max_lrs", "base_values")  # base_values: timm's base_lrs
_OTHER_LISTS = ("lr_lambdas", "base_momentums", "max_momentums")


def scaled(value: Any, factor: float) -> Any:
    """A rate times a factor, as a new tensor if it is one; a factor of exactly 1 leaves the bits unchanged."""
    if factor != 1:
        return value * factor
    return value.clone() if isinstance(value, Tensor) else value


def schedulers_of(optimizer: Optimizer, schedulers: Sequence[Any]) -> list[Any]:
    """The schedulers of an optimizer, including those inside SequentialLR, ChainedScheduler and similar ones."""
    found: list[Any] = []
    queue = list(schedulers)
    while queue:
        scheduler = queue.pop()
        if any(scheduler is other for other in found):
            continue
        found.append(scheduler)
        for value in vars(scheduler).values():
            inner = value if isinstance(value, list | tuple) else [value]
            queue.extend(item for item in inner if isinstance(item, LRScheduler))
    groups = [getattr(getattr(scheduler, "optimizer", None), "param_groups", None) for scheduler in found]
    # compare the lists of groups: a wrapper of an optimizer shares its list
    return [one for one, held in zip(found, groups, strict=True) if held is optimizer.param_groups]


def check_lists(schedulers: Sequence[Any], groups: int) -> None:
    """Refuse schedulers whose per-group lists do not have one entry per group.

    Raises:
        OptimizerError: a list has another length.
    """
    for scheduler in schedulers:
        for key in (*_RATE_LISTS, *_OTHER_LISTS):
            values = vars(scheduler).get(key)
            if isinstance(values, list) and len(values) != groups:
                raise OptimizerError(
                    f"{type(scheduler).__name__}.{key} has {len(values)} entries for the {groups} groups of its "
                    "optimizer.\n  Make the scheduler after all groups have been added to the optimizer"
                )


def reindex(schedulers: Sequence[Any], origins: Sequence[int], factors: Sequence[float]) -> None:
    """Give each scheduler one entry per new group: the entry of the original group, with rates times the factor."""
    for scheduler in schedulers:
        for key in (*_RATE_LISTS, *_OTHER_LISTS):
            values = vars(scheduler).get(key)
            if isinstance(values, list):
                scales = factors if key in _RATE_LISTS else [1.0] * len(factors)
                fresh = [scaled(values[origin], scale) for origin, scale in zip(origins, scales, strict=True)]
                setattr(scheduler, key, fresh)
