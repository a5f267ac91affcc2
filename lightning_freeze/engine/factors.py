"""The learning rate factor of each parameter: by the depth of its stage, or explicit."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_freeze.arguments import check_number
from lightning_freeze.engine.context import Context
from lightning_freeze.errors import PlanError
from lightning_freeze.model.patterns import as_patterns
from lightning_freeze.stages.stage import Stages, is_named


def check_rates(decay: float | None, multipliers: Mapping[str, float] | None, owner: str) -> None:
    """Check the arguments of `LayerwiseLR`.

    Raises:
        PlanError: `decay` is not in (0, 1], or a multiplier is not a finite number greater than 0.
    """
    if decay is not None:
        check_number(decay, "decay", owner)
    if multipliers is not None and not isinstance(multipliers, Mapping):
        raise PlanError(f"{owner}: multipliers={multipliers!r} must be a dict, {{'pattern': factor, ...}}")
    if decay is not None and not 0 < decay <= 1:
        raise PlanError(f"{owner}: decay must be greater than 0 and at most 1, got {decay}")
    for pattern, factor in (multipliers or {}).items():
        as_patterns(pattern, f"{owner} multipliers")
        check_number(factor, f"the factor of '{pattern}'", owner)
        if factor <= 0:
            raise PlanError(
                f"{owner}: the factor of '{pattern}' must be greater than 0, got {factor}.\n"
                "  To freeze it, use FreezeLayers"
            )


def rate_factors(
    context: Context, decay: float | None, multipliers: Mapping[str, float] | None, stages: Stages, owner: str
) -> tuple[dict[str, str], dict[str, float]]:
    """The labels and factors of parameters that have a factor.

    Args:
        context: the model.
        decay: `decay**k` for stage k below the top.
        multipliers: name of a stage or pattern -> factor that replaces that of `decay`; a later entry wins.
        stages: the stages for `decay`; `multipliers` may use their names.
        owner: the subject of error messages.

    Raises:
        FreezeError: a value out of range, or a pattern that matches nothing.
    """
    check_rates(decay, multipliers, owner)
    labels: dict[str, str] = {}
    factors: dict[str, float] = {}
    # discovering stages takes a forward pass, so it is done only if they are needed
    bound = context.stages(stages, owner) if decay is not None or is_named(stages) or context.shared else []
    for depth, stage in enumerate(bound if decay is not None else ()):
        labels.update(dict.fromkeys(stage.names, stage.name))
        factors.update(dict.fromkeys(stage.names, (decay or 1.0) ** depth))
    by_name = {stage.name: stage.names for stage in bound}
    for pattern, factor in (multipliers or {}).items():
        names = by_name.get(pattern) or context.select(pattern, f"{owner} multipliers")
        factors.update(dict.fromkeys(names, factor))
        labels.update({name: pattern for name in names if name not in labels})
    return labels, factors
