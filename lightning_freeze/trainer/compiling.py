"""Make room for the graphs of torch.compile: every new trainable set is a new graph, and torch stops at the ninth.

Beyond `torch._dynamo.config.recompile_limit` a function stays uncompiled, with only a line in a log. So the limit is
raised during a fit, and restored afterwards.
"""

from __future__ import annotations

import warnings

from torch import nn
from torch._dynamo import config

_NAMES = ("recompile_limit", "accumulated_recompile_limit")
_OLD_NAMES = ("cache_size_limit", "accumulated_cache_size_limit")  # before torch 2.7
_GRAPHS = 4  # graphs of one function for one trainable set: train and eval mode, with and without gradients


def limits() -> tuple[int, int]:
    """The current limits of graphs per function, and of graphs accumulated per function."""
    first, second = (getattr(config, name) for name in _names())
    return int(first), int(second)


def _names() -> tuple[str, str]:
    return _NAMES if hasattr(config, "recompile_limit") else _OLD_NAMES


class Compiling:
    """Make room for the graphs of a schedule, and check that unfrozen parameters get gradients.

    Args:
        changes: known number of changes of the trainable set.

    Examples:
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
        """Called when the trainable set has changed: these parameters should get gradients from the next step on."""
        self._done += 1
        self._pending = unfrozen
        if self._done > self._expected:
            self._make_room(self._done)

    def check_gradients(self) -> None:
        """Called after each backward pass: warn if, in the first one since a change, no unfrozen parameter got any."""
        pending, self._pending = self._pending, {}
        lost = [name for name, parameter in pending.items() if parameter.grad is None]
        if lost and len(lost) == len(pending):
            warnings.warn(
                f"'{lost[0]}' ({len(lost)} parameters in all) was unfrozen in a compiled model, and the first backward "
                "pass since gave it none of its gradients.\n  If training_step uses it, train without torch.compile",
                stacklevel=2,
            )

    def close(self) -> None:
        """Restore the limits."""
        for name, before in zip(_names(), self._before, strict=True):
            setattr(config, name, before)
