"""Options of optimizer groups other than learning rates: check that they exist and fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.arguments import is_number
from lightning_freeze.errors import PlanError
from lightning_freeze.optim.state import fresh_optimizer

RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_OF_THE_GROUP = ("params", "param_names", "name")
_CYCLED = ("momentum", "betas")


def check_option(option: Any, owner: str) -> None:
    """Refuse learning rates and the keys that make up a group.

    Raises:
        PlanError: it is not an option.
    """
    if option in RATES:
        raise PlanError(
            f"{owner}: '{option}' is a learning rate, and options do not set rates.\n"
            "  Use LayerwiseLR(multipliers={'pattern': factor}), which LR schedulers go on scaling"
        )
    if not isinstance(option, str) or not option or option in _OF_THE_GROUP:
        raise PlanError(f"{owner}: {option!r} is not an option of an optimizer, such as weight_decay")


def check_options(optimizer: Optimizer, place: int, options: Mapping[str, Any], owner: str) -> None:
    """Refuse options that a group lacks, and values that the optimizer rejects.

    Args:
        optimizer: the optimizer, before it is split.
        place: index of the group.
        options: option -> value.
        owner: the subject of error messages.

    Raises:
        PlanError: an option is refused, or a scheduler overwrites it in each step.
    """
    group, kind = optimizer.param_groups[place], type(optimizer).__name__
    has = [key for key in group if key not in (*RATES, *_OF_THE_GROUP)]
    for option, value in options.items():
        if option not in group:
            near = difflib.get_close_matches(option, has, n=1) or has
            raise PlanError(f"{owner}: {kind} has no option '{option}'.\n  It has: {', '.join(near)}")
        if option in _CYCLED and "max_momentum" in group:
            raise PlanError(
                f"{owner}: an LR scheduler sets '{option}' in each step, so {value!r} would be lost.\n"
                "  Make the scheduler with cycle_momentum=False"
            )
        if not _fits(value, group[option]):
            raise PlanError(f"{owner}: {option}={value!r} does not fit {kind}, which has {group[option]!r} now")
    if group["params"]:
        try:
            fresh_optimizer(optimizer, group["params"][0], changed(group, options))
        except ValueError as error:
            raise PlanError(f"{owner}: {kind} refuses {dict(options)}: {error}") from None


def _fits(value: Any, present: Any) -> bool:
    if isinstance(present, bool):
        return isinstance(value, bool)
    if isinstance(present, int | float):
        return is_number(value)
    if isinstance(present, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(present) and all(map(_fits, value, present))
    return True


def changed(group: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from those of a group; a list becomes a tuple where the group has a tuple."""
    fitted = {key: tuple(value) if isinstance(group.get(key), tuple) else value for key, value in options.items()}
    return {key: fitted[key] for key in sorted(fitted) if key not in group or not _same(fitted[key], group[key])}


def _same(value: Any, present: Any) -> bool:
    return value is present or (present is not None and bool(value == present))


def options_text(options: Mapping[str, Any]) -> str:
    """Options as text for tables and names of groups: `weight_decay=0, eps=1e-06`."""
    return ", ".join(f"{key}={_value_text(value)}" for key, value in options.items())


def _value_text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"({', '.join(map(_value_text, value))})"
    return f"{value:g}" if is_number(value) else str(value)
