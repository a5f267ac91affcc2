"""Ratios from which rates adapt, one for each group of an optimizer, on the device of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.errors import OptimizerError
from lightning_freeze.optim.norms import gradient_scale, local, reduced, shares, total
from lightning_freeze.optim.state import state_after_step

_MOMENTS = ("exp_avg", "exp_avg_sq")


def moment_ratios(optimizer: Optimizer) -> Tensor | None:
    """The mean of |m| / (sqrt(v) + eps) over all elements of each group that have moments, bias-corrected `[groups]`.

    0 for a group without moments; None when there are none at all.
    """
    weights = _weights(optimizer)
    figures: list[Tensor | None] = []
    for group in optimizer.param_groups:
        moving = [p for p in group["params"] if _has_moments(optimizer.state.get(p))]
        if not moving:
            figures.append(None)
            continue
        ratios = _ratios([optimizer.state[p] for p in moving], group)
        counts = [weights[p] for p in moving]
        elements = sum(part.numel() * count for part, count in zip(ratios, counts, strict=True))
        figures.append(_pair(total(ratios, counts, 1), elements))
    return _quotients(figures, optimizer)


def trust_ratios(optimizer: Optimizer) -> Tensor | None:
    """|w| / |g| over the parameters of each group that have a gradient `[groups]`; 0 for a group without."""
    weights = _weights(optimizer)
    figures: list[Tensor | None] = []
    for group in optimizer.param_groups:
        moving = [p for p in group["params"] if p.grad is not None]
        if not moving:
            figures.append(None)
            continue
        counts = [weights[p] for p in moving]
        values = total(local([p.detach() for p in moving]), counts, 2)
        figures.append(_pair(values, total(local([p.grad for p in moving]), counts, 2)))
    quotients = _quotients(figures, optimizer)
    return None if quotients is None else quotients.sqrt() * gradient_scale(optimizer)


def _weights(optimizer: Optimizer) -> dict[Tensor, float]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return dict(zip(parameters, shares(parameters), strict=True))


def _has_moments(state: Mapping[str, Any] | None) -> bool:
    return state is not None and all(isinstance(state.get(key), Tensor) for key in _MOMENTS)


def _ratios(states: Sequence[Mapping[str, Any]], group: Mapping[str, Any]) -> list[Tensor]:
    """|m| / (sqrt(v) + eps) of each parameter, this rank's part."""
    moments, squares = (local([state[key] for state in states]) for key in _MOMENTS)
    first, second = (_corrections([state["step"] for state in states], beta) for beta in group["betas"][:2])
    ratios = list(torch._foreach_abs(moments))
    torch._foreach_div_(ratios, first)
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_div_(roots, [correction**0.5 for correction in second])
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_div_(ratios, roots)
    return ratios


def _corrections(steps: Sequence[Any], beta: float) -> list[Any]:
    """1 - beta ** step for each; counters on a GPU stay there."""
    if not any(isinstance(step, Tensor) and step.is_cuda for step in steps):
        return [1 - beta ** float(step) or 1.0 for step in steps]
    exact = torch.stack([torch.as_tensor(step).double() for step in steps])
    return [correction.float() for correction in (1 - beta**exact).clamp_min(torch.finfo(torch.float32).tiny).unbind()]


def _pair(numerator: Tensor, denominator: Tensor | float) -> Tensor:
    return torch.stack([numerator, torch.as_tensor(denominator, dtype=numerator.dtype, device=numerator.device)])


def _quotients(figures: Sequence[Tensor | None], optimizer: Optimizer) -> Tensor | None:
    first = next((figure for figure in figures if figure is not None), None)
    if first is None:
        return None
    nothing = first.new_tensor([0.0, 1.0])
    pairs = torch.stack([nothing if figure is None else figure.to(first.device) for figure in figures])
    pairs = reduced(pairs, [p for group in optimizer.param_groups for p in group["params"]])
    return pairs[:, 0] / pairs[:, 1]


def check_moments(optimizer: Optimizer, owner: str) -> None:
    """Refuse an optimizer that keeps no first and second moment.

    Raises:
        OptimizerError: it does not, or has no `betas` and `eps`.
    """
    keys = _state_keys(optimizer)
    missing = [key for key in _MOMENTS if keys is not None and key not in keys]
    missing += [key for key in ("betas", "eps") if any(key not in group for group in optimizer.param_groups)]
    if missing:
        raise OptimizerError(
            f"{owner}: kind='moment_ratio' needs the moments of an Adam-family optimizer, and "
            f"{type(optimizer).__name__} has no {', '.join(missing)}.\n"
            "  Use AdamW, Adam, NAdam or RAdam, or kind='trust_ratio', which works with any optimizer"
        )


def _state_keys(optimizer: Optimizer) -> set[str] | None:
    """What the optimizer keeps for a parameter; None when a trial does not tell."""
    for state in optimizer.state.values():
        return set(state)
    state = state_after_step(optimizer)
    return None if state is None else set(state)
