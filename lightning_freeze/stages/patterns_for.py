"""Convert parameter names to patterns: the inverse of `select`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import accumulate, islice

from lightning_freeze.model.index import ModelIndex, ModuleSpan

_SPECIAL = re.compile(r"!|(re|kind|type):|.*[*?\[&]", re.DOTALL)


def patterns_for(index: ModelIndex, names: Collection[str]) -> list[str]:
    """A short list of patterns that selects exactly these parameters, in order of registration.

    Patterns are whole modules where possible, and use `!` only if this makes the list at most half as long.

    Args:
        index: the model.
        names: canonical names of parameters.

    Examples:
        >>> from torch import nn
        >>> index = ModelIndex(nn.ModuleDict({name: nn.Linear(2, 2) for name in "abcdefg"}))
        >>> patterns_for(index, ["a.weight", "a.bias", "b.weight"])
        ['a', 'b.weight']
        >>> patterns_for(index, [name for name in index.parameters if name != "d.bias"])
        ['*', '!d.bias']
    """
    return _Cover(index, names).best("")


class _Cover:
    """Build patterns from the root down. A tied parameter has several names and is covered once."""

    def __init__(self, index: ModelIndex, names: Collection[str]) -> None:
        self.index, self.chosen = index, set(names)
        self.covered: set[str] = set()
        self._sums = [0, *accumulate(map(self.chosen.__contains__, index.entries))]
        self._ties = len(index.entries) > len(index.parameters)

    def best(self, module: str) -> list[str]:
        """Patterns for the chosen parameters under a module that are not covered yet."""
        plain = list(self._parts(module, self.best))
        if len(plain) > 3:
            most = len(plain) // 2 - 1
            others = _Cover(self.index, self.index.parameters.keys() - self.chosen)
            rest = list(islice(others.plain(module), most + 1))
            if len(rest) <= most:
                return [_whole(module), *(f"!{pattern}" for pattern in rest)]
        return plain

    def plain(self, module: str) -> Iterator[str]:
        """Patterns for the same parameters without `!`."""
        return self._parts(module, self.plain)

    def _parts(self, module: str, inside: Callable[[str], Iterable[str]]) -> Iterator[str]:
        span = self.index.modules[module]
        chosen = self._sums[span.stop] - self._sums[span.start]
        if not chosen or (self._ties and not self._left(span)):
            return
        if chosen == span.stop - span.start:
            self.covered.update(self.index.under(module))
            yield _whole(module)
            return
        slots, children = self.index.inside[module]
        for slot in slots:
            if (name := self.index.aliases[slot]) in self.chosen and name not in self.covered:
                self.covered.add(name)
                yield _exact(slot)
        for child in children:
            yield from inside(child)

    def _left(self, span: ModuleSpan) -> bool:
        """Whether a chosen parameter in a module is not covered yet."""
        names = self.index.entries[span.start : span.stop]
        return any(name in self.chosen and name not in self.covered for name in names)


def _whole(module: str) -> str:
    """The pattern of all parameters under a module."""
    if not module:
        return "*"
    return f"re:{re.escape(module)}\\..*" if _SPECIAL.match(module) else module


def _exact(parameter: str) -> str:
    """The pattern of one parameter, escaped if its name could be read as another pattern."""
    return f"re:{re.escape(parameter)}" if _SPECIAL.match(parameter) else parameter
