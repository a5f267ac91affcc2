"""Pull parameters back to their start values: L2-SP, decoupled from the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze.model.dtensors import cut_like, local_part

_CHUNK = 64 * 2**20  # bytes copied to the device at a time


class Anchor:
    """Start values by parameter name.

    Args:
        on_host: whether to keep the values in host memory; else on the device of the parameters.
    """

    def __init__(self, on_host: bool) -> None:
        self._on_host = on_host
        self.values: dict[str, Tensor] = {}  # DTensors for sharded parameters

    def take(self, names: Sequence[str], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """The start values. Those that are not known yet are copied, so their parameters must not have moved."""
        for name, parameter in zip(names, parameters, strict=True):
            if name not in self.values:
                self.values[name] = self._placed(parameter.detach(), parameter)
        return [self.values[name] for name in names]

    def load(self, values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        """Replace the start values by those of a checkpoint."""
        self.values = {
            name: self._placed(cut_like(value, parameters[name]), parameters[name]) for name, value in values.items()
        }

    def _placed(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        if not self._on_host or parameter.device.type == "cpu":
            return value.to(parameter.device, copy=True)
        host = value.to("cpu", copy=True)
        return host if local_part(host) is not host else host.pin_memory()


@torch.no_grad()
def pull(parameters: Sequence[nn.Parameter], starts: Sequence[Tensor], weight: Any) -> None:
    """Move parameters a fraction of the way to their start. `weight` is a number or 0-dim tensor, at most 1."""
    here, there = ([local_part(tensor) for tensor in tensors] for tensors in (parameters, starts))
    for some, ends in _chunks(here, there):
        if not isinstance(weight, Tensor):
            torch._foreach_lerp_(some, ends, min(weight, 1.0))
            continue
        way = list(torch._foreach_sub(ends, some))
        torch._foreach_mul_(way, weight.clamp(max=1.0).to(some[0].device))
        torch._foreach_add_(some, way)


def _chunks(here: list[Tensor], there: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield pairs on one device; start values in host memory are copied to the device in chunks."""
    if all(start.device == tensor.device for start, tensor in zip(there, here, strict=True)):
        yield here, there
        return
    some: list[Tensor] = []
    starts: list[Tensor] = []
    size = 0
    for tensor, start in zip(here, there, strict=True):
        some.append(tensor)
        starts.append(start.to(tensor.device, non_blocking=True))
        size += tensor.nbytes
        if size >= _CHUNK:
            yield some, starts
            some, starts, size = [], [], 0
    if some:
        yield some, starts


def skipped(optimizer: Optimizer) -> Tensor | None:
    """A 0-dim tensor, 1 if the update was skipped: with a GradScaler, a fused optimizer skips steps by itself."""
    found: Tensor | None = getattr(optimizer, "found_inf", None)
    return found
