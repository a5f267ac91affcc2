"""Ratios that adapt learning rates, one per optimizer group, on the device of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.errors import OptimizerError
from lightning_freeze.model.dtensors import is_sharded_tensor
from lightning_freeze.optim.norms import gradient_scale, local, reduced, shares, totals
from lightning_freeze.optim.state import state_after_step

_MOMENTS = ("exp_avg", "exp_avg_sq")


def moment_ratios(optimizer: Optimizer) -> Tensor | None:
    """The mean of |m| / (sqrt(v) + eps) over the elements of each group, bias-corrected, shape `[groups]`.

    0 for a group without moments; None if no group has any.
    """
    groups = [[p for p in group["params"] if _has_moments(optimizer.state.get(p))] for group in optimizer.param_groups]
    if not any(groups):
        return None
    ratios = [
        _ratios([optimizer.state[p] for p in moving], group) if moving else []
        for moving, group in zip(groups, optimizer.param_groups, strict=True)
    ]
    counts = [shares(moving) for moving in groups]
    sums = totals(ratios, counts, 1)
    elements = [
        sum(part.numel() * count for part, count in zip(parts, each, strict=True)) or 1.0
        for parts, each in zip(ratios, counts, strict=True)
    ]
    if not _in_parts(optimizer):
        return sums / sums.new_tensor(elements)
    pairs = reduced(torch.stack([sums, sums.new_tensor(elements)]), _parameters(optimizer))
    return pairs[0] / pairs[1]


def trust_ratios(optimizer: Optimizer) -> Tensor | None:
    """|w| / |g| over the parameters with a gradient of each group, shape `[groups]`; 0 without a gradient."""
    norms = _norms(optimizer)
    if norms is None:
        return None
    weights, gradients = norms
    ratios: Tensor = torch.where(gradients > 0, weights / gradients, 0.0) * gradient_scale(optimizer)
    return ratios


def gradient_ratios(optimizer: Optimizer) -> Tensor | None:
    """|g| / |w| over the parameters with a gradient of each group, shape `[groups]`; 0 without a gradient."""
    norms = _norms(optimizer)
    if norms is None:
        return None
    weights, gradients = norms
    ratios: Tensor = torch.where(weights > 0, gradients / weights, 0.0) / gradient_scale(optimizer)
    return ratios


def _norms(optimizer: Optimizer) -> tuple[Tensor, Tensor] | None:
    """Norms of weights and gradients per group, over parameters with a gradient; None if no parameter has one."""
    groups = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    if not any(groups):
        return None
    counts = [shares(moving) for moving in groups]
    squares = torch.stack(
        [
            totals([local([p.detach() for p in moving]) for moving in groups], counts, 2),
            totals([local([p.grad for p in moving]) for moving in groups], counts, 2),
        ]
    )
    weights, gradients = reduced(squares, _parameters(optimizer)).sqrt()
    return weights, gradients


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _in_parts(optimizer: Optimizer) -> bool:
    return any(is_sharded_tensor(parameter) for parameter in _parameters(optimizer))


def _has_moments(state: Mapping[str, Any] | None) -> bool:
    return state is not None and all(isinstance(state.get(key), Tensor) for key in _MOMENTS)


def _ratios(states: Sequence[Mapping[str, Any]], group: Mapping[str, Any]) -> list[Tensor]:
    """The signed ratio m / (sqrt(v) + eps) of this rank's part of each parameter."""
    moments, squares = (local([state[key] for state in states]) for key in _MOMENTS)
    first, second = (_corrections([state["step"] for state in states], beta) for beta in group["betas"][:2])
    # |m| / c1 / (sqrt(v) / sqrt(c2) + eps) with few passes over memory; the caller takes absolute values
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_div_(roots, [correction**0.5 for correction in second])
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_mul_(roots, first)
    return list(torch._foreach_div(moments, roots))


def _corrections(steps: Sequence[Any], beta: float) -> list[Any]:
    """1 - beta ** step of each parameter; step counters on a GPU stay there."""
    if not any(isinstance(step, Tensor) and step.is_cuda for step in steps):
        return [1 - beta ** float(step) or 1.0 for step in steps]
    exact = torch.stack([torch.as_tensor(step).double() for step in steps])
    return [correction.float() for correction in (1 - beta**exact).clamp_min(torch.finfo(torch.float32).tiny).unbind()]


def check_moments(optimizer: Optimizer, owner: str) -> None:
    """Refuse an optimizer without first and second moments.

    Raises:
        OptimizerError: it has no moments, `betas` or `eps`.
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
    """The keys of the optimizer's state of a parameter; None if a trial step fails."""
    for state in optimizer.state.values():
        return set(state)
    state = state_after_step(optimizer)
    return None if state is None else set(state)


class EpochMeans:
    """The sum of the ratios in an epoch, kept on their device, and the mean of the previous epoch, per optimizer."""

    def __init__(self) -> None:
        self._epoch = 0  # of `_sums`
        self._now = 0
        self._sums: dict[int, tuple[int, int, Tensor]] = {}  # optimizer -> last step, count, sum
        self._last: dict[int, Tensor] = {}

    def begin(self, epoch: int) -> None:
        """Start an epoch. Nothing changes before its first step, because a finished run has none."""
        self._now = epoch

    def add(self, optimizer: int, step: int, ratios: Tensor) -> None:
        """Add the ratios of a step, shape `[groups]`. A second call for the same step changes nothing."""
        if self._now != self._epoch:
            self._epoch, self._last, self._sums = self._now, self._means(), {}
        seen, count, total = self._sums.get(optimizer, (-1, 0, torch.zeros_like(ratios)))
        if seen != step:
            self._sums[optimizer] = step, count + 1, total + ratios

    def last(self, optimizer: int) -> Tensor | None:
        """The mean ratios of the previous epoch; None if there is none."""
        return (self._last if self._now == self._epoch else self._means()).get(optimizer)

    def _means(self) -> dict[int, Tensor]:
        return {place: total / count for place, (_, count, total) in self._sums.items()}

    def record(self) -> dict[str, Any]:
        """The state as plain types and tensors, for a checkpoint."""
        return {"epoch": self._epoch, "sums": {k: list(v) for k, v in self._sums.items()}, "last": self._last}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> EpochMeans:
        """Restore what `record` returned."""
        made = cls()
        made._epoch = made._now = record.get("epoch", 0)
        made._sums = {place: (step, count, total) for place, (step, count, total) in record.get("sums", {}).items()}
        made._last = dict(record.get("last", {}))
        return made
