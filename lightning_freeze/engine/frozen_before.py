"""Stages with parameters that were frozen before the fit: an error if a whole stage is, else a remark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_freeze.engine.declarations import Binding
from lightning_freeze.engine.policy import Policy
from lightning_freeze.errors import PlanError
from lightning_freeze.model.freezing_lines import freezing_lines


def check_stages_train(
    policies: Sequence[Policy], bindings: Sequence[Binding], can_train: frozenset[str], model: Any
) -> None:
    """Refuse a stage named by the user that has nothing to train.

    Args:
        policies: the policies of the run.
        bindings: one for each policy.
        can_train: parameters that required a gradient before the fit, or that a policy thaws.
        model: the model; its source may show the line that froze the parameters.

    Raises:
        PlanError: all of its parameters were frozen before the fit.
    """
    for policy, binding in zip(policies, bindings, strict=True):
        for stage in binding.stages:
            if stage.named and can_train.isdisjoint(stage.names):
                raise PlanError(
                    f"{policy.title} stage '{stage.name}' has nothing to train: its {len(stage.names)} parameters "
                    f"(from '{stage.names[0]}' on) required no gradient before the fit.\n  {_cure(model)}"
                )


def _cure(model: Any) -> str:
    lines = freezing_lines(type(model))
    delete = f"Delete {lines[0]}" if lines else "Delete the line that freezes them (requires_grad = False)"
    others = f" ({len(lines) - 1} more such lines follow)" if len(lines) > 1 else ""
    return f"{delete}{others}, pass thaw=True to unfreeze them with their stage, or leave the stage out"


def partly_frozen(bindings: Sequence[Binding], can_train: frozenset[str]) -> list[tuple[str, int, int]]:
    """Yield named stages with some frozen parameters: name, number of frozen parameters, number of parameters."""
    found = []
    for stage in (stage for binding in bindings for stage in binding.stages if stage.named):
        frozen = sum(name not in can_train for name in stage.names)
        if 0 < frozen < len(stage.names):
            found.append((stage.name, frozen, len(stage.names)))
    return list(dict.fromkeys(found))
