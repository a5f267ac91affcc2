"""Merge the optimizer options that policies ask for, one value per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_freeze.engine.declarations import Binding
from lightning_freeze.engine.policy import Policy
from lightning_freeze.errors import PlanError


def merged_options(policies: Sequence[Policy], bindings: Sequence[Binding]) -> dict[str, dict[str, Any]]:
    """Parameter -> option -> value, from all policies.

    Raises:
        PlanError: two policies ask for different values of one option of one parameter.
    """
    merged: dict[str, dict[str, Any]] = {}
    for policy, binding in zip(policies, bindings, strict=True):
        for name, options in binding.options.items():
            mine = merged.setdefault(name, {})
            for option, value in options.items():
                if mine.setdefault(option, value) != value:
                    raise PlanError(
                        f"{policy.title}: {option}={value!r} is asked for '{name}', and another callback asks for "
                        f"{mine[option]!r}.\n  Put both into one {policy.title}, where the later entry wins"
                    )
    return merged
