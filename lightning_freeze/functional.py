"""Freezing in a plain training loop, without a Trainer."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_freeze.engine.context import Context
from lightning_freeze.engine.factors import rate_factors
from lightning_freeze.engine.modes import hold, release
from lightning_freeze.errors import PlanError
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.model.patterns import Patterns, select_names
from lightning_freeze.model.training_flag import needs_train_mode


def freeze(model: nn.Module, patterns: Patterns, eval_mode: bool = True) -> list[str]:
    """Stop the selected parameters from training, and return their names.

    Their gradient is removed, so that an optimizer that still holds them skips them. With a gradient of zero, momentum
    and weight decay would continue to move them.

    Args:
        model: any module.
        patterns: what to freeze (see `select`).
        eval_mode: whether to keep modules whose parameters are all frozen in eval mode until `unfreeze`, even if
            `train()` is called. Modules whose own forward branches on `self.training` are not held.

    Raises:
        PatternError: a pattern matches nothing; nothing has been frozen.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> freeze(model, ["*", "!2"])
        ['0.weight', '0.bias', '1.weight', '1.bias']
        >>> [layer.training for layer in model.train()]
        [False, False, True]
    """
    index = ModelIndex(model)
    names = select_names(index, patterns, "freeze")
    for name in names:
        index.parameters[name].requires_grad_(False)
        index.parameters[name].grad = None
    if eval_mode:
        for place in _view(index).frozen_modules(frozenset(names)):
            if not needs_train_mode(index.spans[place].module):
                hold(index.spans[place].module)
    return names


def unfreeze(model: nn.Module, patterns: Patterns) -> list[str]:
    """Let the selected parameters train again, and return their names. Modules that `freeze` holds are released.

    Args:
        model: any module.
        patterns: what to unfreeze (see `select`).

    Raises:
        PatternError: a pattern matches nothing; nothing has been unfrozen.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> _ = freeze(model, "*")
        >>> unfreeze(model, "1")
        ['1.weight', '1.bias']
    """
    index = ModelIndex(model)
    names = select_names(index, patterns, "unfreeze")
    for name in names:
        index.parameters[name].requires_grad_(True)
    frozen = _view(index).frozen_modules(frozenset(index.parameters))
    for place, span in enumerate(index.spans):
        if place not in frozen:
            release(span.module)
    return names


def _view(index: ModelIndex) -> FrozenView:
    return FrozenView(index, frozenset(name for name, parameter in index.parameters.items() if parameter.requires_grad))


def param_groups(
    model: nn.Module,
    lr: float,
    decay: float | None = None,
    multipliers: dict[str, float] | None = None,
    weight_decay: float = 0.0,
    no_decay: tuple[str, ...] | list[str] = ("bias", "norm"),
) -> list[dict[str, Any]]:
    """Make optimizer groups with a rate per stage and without weight decay for norms and biases, head first.

    Args:
        model: any module; each parameter that requires a gradient is in exactly one group.
        lr: the rate of the top stage.
        decay: the rate of stage k below the top is `lr * decay**k`, with the stages of `discover_stages`.
        multipliers: pattern -> factor greater than 0, which replaces the factor of `decay`; a later entry wins.
        weight_decay: weight decay of all parameters except those of `no_decay`.
        no_decay: "bias" (the same as `kind:bias`), "norm" (the same as `kind:norm`, and all one-dimensional
            parameters), or patterns.

    Returns:
        Groups with "params", "lr", "weight_decay" and "name", for any torch optimizer.

    Raises:
        PlanError: a value is out of range.
        PatternError: a pattern matches nothing.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> for group in param_groups(model, lr=0.1, decay=0.5, weight_decay=0.01):
        ...     print(group["name"], group["lr"], group["weight_decay"], len(group["params"]))
        2 0.1 0.01 1
        2/no_decay 0.1 0.0 1
        0 0.05 0.01 1
        0/no_decay 0.05 0.0 3
    """
    if lr <= 0 or weight_decay < 0:
        raise PlanError(
            f"param_groups: lr must be greater than 0 and weight_decay at least 0, got {lr} and {weight_decay}"
        )
    context = Context(model)
    labels, factors = rate_factors(context, decay, multipliers, "auto", "param_groups")
    bare = _without_decay(context.index, no_decay) if weight_decay else set()
    groups: dict[tuple[str, float, bool], dict[str, Any]] = {}
    order = {stage.name: place for place, stage in enumerate(context.stages("auto", "param_groups"))} if decay else {}
    for name in sorted(context.index.parameters, key=lambda name: order.get(labels.get(name, ""), 0)):
        parameter = context.index.parameters[name]
        if parameter.requires_grad:
            key = (labels.get(name, "rest"), factors.get(name, 1.0), name in bare)
            title = key[0] + ("/no_decay" if key[2] else "")
            options = {"lr": lr * key[1], "weight_decay": 0.0 if key[2] else weight_decay, "name": title}
            groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
    return list(groups.values())


def _without_decay(index: ModelIndex, no_decay: tuple[str, ...] | list[str]) -> set[str]:
    found: set[str] = set()
    for word in no_decay:
        if word in ("bias", "norm"):
            found |= index.searchable.kinds.get(word, set())
        else:
            found.update(select_names(index, word, "param_groups no_decay"))
        if word == "norm":
            found.update(name for name, parameter in index.parameters.items() if parameter.dim() == 1)
    return found
