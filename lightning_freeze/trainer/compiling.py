"""Make room for the graphs of torch.compile: every new trainable set is a new graph, and torch stops at the ninth.

Beyond `recompile_limit` a function stays uncompiled, with only a line in a log. So the limit is raised during a fit
and restored afterwards. Where torch has a limit per compiled region, only the regions of the model get a higher one;
else the limit of `torch._dynamo.config` is raised for every compiled function. The limit of accumulated graphs is
always one for the whole process.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

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
        regions: what torch compiles frames with, of each compiled part of the model (`regions_of`); none: every
            compiled function gets the room.

    Examples:
        >>> before = limits()
        >>> room = Compiling(changes=20)
        >>> limits()[0] >= before[0] + 20
        True
        >>> room.close()
        >>> limits() == before
        True
    """

    def __init__(self, changes: int, regions: Sequence[Any] = ()) -> None:
        self._before = limits()
        self._regions = [(region, region._recompile_limit) for region in regions]
        self._expected, self._done = changes, 0
        self._pending: dict[str, nn.Parameter] = {}
        self._make_room(changes)

    def _make_room(self, changes: int) -> None:
        more = _GRAPHS * (changes + 1)
        for region, before in self._regions:
            region._recompile_limit = (self._before[0] if before is None else before) + more
        for name, limit in list(zip(_names(), self._before, strict=True))[bool(self._regions) :]:
            setattr(config, name, max(getattr(config, name), limit + more))

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
        for name, limit in zip(_names(), self._before, strict=True):
            setattr(config, name, limit)
        for region, before in self._regions:
            region._recompile_limit = before


def regions_of(modules: Sequence[nn.Module]) -> list[Any]:
    """What torch compiles the frames of these modules with, each with a limit of its own; none before torch has it.

    Args:
        modules: compiled by `torch.compile` or `module.compile`, or unwrapped by Lightning.
    """
    found: dict[int, Any] = {}
    for module in modules:
        context = getattr(module, "dynamo_ctx", None) or (getattr(module, "_compiler_ctx", None) or {}).get(
            "dynamo_ctx"
        )
        closed = getattr(getattr(module, "_compiled_call_impl", None), "__closure__", None) or ()
        for start in (getattr(context, "callback", None), *(cell.cell_contents for cell in closed)):
            found.update((id(frames), frames) for frames in _with_limit(start))
    return list(found.values())


def _with_limit(start: Any) -> Iterator[Any]:
    """A callback of dynamo and those inside it that have a `recompile_limit`."""
    if hasattr(start, "_recompile_limit"):
        yield start
        for inner in ("_inner_convert", "_torchdynamo_orig_backend"):
            yield from _with_limit(vars(start).get(inner))
