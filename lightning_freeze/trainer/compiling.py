"""torch.compile under a schedule: every new trainable set is a new graph, and torch stops at the ninth.

Past `torch._dynamo.config.recompile_limit` a function runs uncompiled for good, with a line in a log. So the limit
is raised for the time of a fit, and put back.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch._dynamo import config

_NAMES = ("recompile_limit", "accumulated_recompile_limit")
_OLD_NAMES = ("cache_size_limit", "accumulated_cache_size_limit")  # before torch 2.7
_GRAPHS = 4  # of one function for one trainable set: train and eval mode, with and without gradients


def limits() -> tuple[int, int]:
    """Graphs per function, and per function with all that it was compiled for before, as they are now."""
    first, second = (getattr(config, name) for name in _names())
    return int(first), int(second)


def _names() -> tuple[str, str]:
    return _NAMES if hasattr(config, "recompile_limit") else _OLD_NAMES


class Compiling:
    """Room for the graphs of a schedule, and a look at whether what trains gets gradients.

    Args:
        changes: how many changes of the trainable set the schedule is known to have.

    Example:
        >>> before = limits()
        >>> room = Compiling(changes=20)
        >>> limits()[0] >= before[0] + 20
        True
        >>> room.close()
        >>> limits() == before
        True
    """

    def __init__(self, changes: int) -> None:
        self._before = limits()
        self._expected, self._done = changes, 0
        self._pending: dict[str, nn.Parameter] = {}
        self._make_room(changes)

    def _make_room(self, changes: int) -> None:
        for name, before in zip(_names(), self._before, strict=True):
            setattr(config, name, max(getattr(config, name), before + _GRAPHS * (changes + 1)))

    def changed(self, unfrozen: dict[str, nn.Parameter]) -> None:
        """The trainable set has changed; these parameters should get gradients from the next step on."""
        self._done += 1
        self._pending = unfrozen
        if self._done > self._expected:
            self._make_room(self._done)

    def without_gradient(self) -> Sequence[str]:
        """After the first backward pass since a change: what was unfrozen and, like all of it, got no gradient."""
        pending, self._pending = self._pending, {}
        lost = [name for name, parameter in pending.items() if parameter.grad is None]
        return lost if len(lost) == len(pending) else []

    def close(self) -> None:
        """Put the limits back."""
        for name, before in zip(_names(), self._before, strict=True):
            setattr(config, name, before)
