"""Ratios that adapt learning rates, one per optimizer group, on the device of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.errors import OptimizerError
from lightning_freeze.model.dtensors import is_sharded_tensor
from lightning_freeze.optim.norms import by_group, gradient_scale, local, reduced, shares, totals
from lightning_freeze.optim.state import state_after_step

_MOMENTS = ("exp_avg", "exp_avg_sq")


@torch.no_grad()
def moment_ratios(optimizer: Optimizer) -> Tensor | None:
    """The mean of |m| / (sqrt(v) + eps) over the elements of each group, bias-corrected, shape `[groups]`.

    0 for a group without moments; None if no group has any.
    """
    groups = [[p for p in group["params"] if _has_moments(optimizer.state.get(p))] for group in optimizer.param_groups]
    if not any(groups):
        return None
    ratios, unbiased = _ratios(
        [
            (optimizer.state[p], group)
            for moving, group in zip(groups, optimizer.param_groups, strict=True)
            for p in moving
        ]
    )
    counts = [share for moving in groups for share in shares(moving)]
    lengths = tuple(map(len, groups))
    sums = totals(ratios, lengths, [one * share for one, share in zip(unbiased, counts, strict=True)], 1)
    sizes = torch.tensor([part.numel() * count for part, count in zip(ratios, counts, strict=True)], dtype=sums.dtype)
    elements = by_group(sizes, lengths).to(sums.device)
    if _in_parts(optimizer):
        sums, elements = reduced(torch.stack([sums, elements]), _parameters(optimizer))
    return sums / elements.clamp_min(1.0)


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


@torch.no_grad()
def _norms(optimizer: Optimizer) -> tuple[Tensor, Tensor] | None:
    """Norms of weights and gradients per group, over parameters with a gradient; None if no parameter has one."""
    groups = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    if not any(groups):
        return None
    moving = [p for group in groups for p in group]
    lengths, counts = tuple(map(len, groups)), shares(moving)
    both = [*local(moving), *local([p.grad for p in moving])]  # in one pass
    weights, gradients = reduced(totals(both, lengths * 2, counts * 2, 2).view(2, -1), _parameters(optimizer)).sqrt()
    return weights, gradients


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _in_parts(optimizer: Optimizer) -> bool:
    return any(is_sharded_tensor(parameter) for parameter in _parameters(optimizer))


def _has_moments(state: Mapping[str, Any] | None) -> bool:
    return state is not None and all(isinstance(state.get(key), Tensor) for key in _MOMENTS)


def _ratios(states: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> tuple[list[Tensor], list[Any]]:
    """The signed ratio m / (sqrt(v) + eps) of this rank's part of each parameter, before and for bias correction.

    With c1, c2 for the corrections, |m| / c1 / (sqrt(v / c2) + eps) is |m| / (sqrt(v) + eps * sqrt(c2)), times
    sqrt(c2) / c1: so the corrections cost no pass over memory. Absolute values are left to the caller.

    Args:
        states: for each parameter its state and its group.
    """
    moments, squares = (local([state[key] for state, _ in states]) for key in _MOMENTS)
    steps = [state["step"] for state, _ in states]
    first, second = (_corrections(steps, [group["betas"][place] for _, group in states]) for place in (0, 1))
    roots = list(torch._foreach_sqrt(squares))
    _add(roots, [group["eps"] * c2**0.5 for (_, group), c2 in zip(states, second, strict=True)])
    return list(torch._foreach_div(moments, roots)), [c2**0.5 / c1 for c1, c2 in zip(first, second, strict=True)]


def _add(tensors: list[Tensor], values: list[Any]) -> None:
    same = not isinstance(values[0], Tensor) and values.count(values[0]) == len(values)
    torch._foreach_add_(tensors, values[0] if same else values)


def _corrections(steps: Sequence[Any], betas: Sequence[float]) -> list[Any]:
    """1 - beta ** step of each parameter; step counters on a GPU stay there."""
    if not any(isinstance(step, Tensor) and step.is_cuda for step in steps):
        return [1 - beta ** float(step) or 1.0 for step, beta in zip(steps, betas, strict=True)]
    exact = torch.stack([torch.as_tensor(step).double() for step in steps])
    corrected = 1 - exact.new_tensor(betas) ** exact
    return [one.float() for one in corrected.clamp_min(torch.finfo(torch.float32).tiny).unbind()]


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
