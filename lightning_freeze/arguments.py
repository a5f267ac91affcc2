"""Checks of argument values, shared by all constructors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_freeze.errors import PlanError


def is_number(value: object) -> bool:
    """Whether a value is a finite number, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_number(value: object, name: str, owner: str) -> None:
    """Refuse anything but a finite number.

    Raises:
        PlanError: it is not.
    """
    if not is_number(value):
        raise PlanError(f"{owner}: {name} must be a finite number, got {value!r}")


def check_flag(value: object, name: str, owner: str) -> None:
    """Refuse anything but true and false; otherwise the string "no" would count as true.

    Raises:
        PlanError: it is neither.
    """
    if not isinstance(value, bool):
        raise PlanError(f"{owner}: {name} must be true or false, got {value!r}")


def check_positive(value: object, name: str, owner: str, *, minimum: int = 1) -> None:
    """Refuse anything but a whole number of at least `minimum`.

    Raises:
        PlanError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise PlanError(f"{owner}: {name} must be a whole number of at least {minimum}, got {value!r}")


def check_choice(value: object, choices: Sequence[str], name: str, owner: str) -> None:
    """Refuse anything but one of the choices.

    Raises:
        PlanError: it is not.
    """
    if value not in choices:
        raise PlanError(f"{owner}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
