"""Convert parameter names to patterns: the inverse of `select`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from itertools import chain, islice

from lightning_freeze.model.index import ModelIndex

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

    def __init__(self, index: ModelIndex, names: Iterable[str]) -> None:
        self.index, self.chosen = index, set(names)
        self.covered: set[str] = set()

    @cached_property
    def touched(self) -> set[str]:
        """The modules that contain chosen parameters; all others can be skipped."""
        found: set[str] = set()
        for alias in chain.from_iterable(self.index.all_names[name] for name in self.chosen):
            owner = alias.rpartition(".")[0]
            while owner not in found:
                found.add(owner)
                owner = owner.rpartition(".")[0]
        return found

    def best(self, module: str) -> list[str]:
        """Patterns for the chosen parameters under a module that are not covered yet."""
        if module not in self.touched:
            return []
        under = set(self.index.under(module))
        wanted = (under & self.chosen) - self.covered
        if not wanted:
            return []
        plain = [_whole(module)] if under <= self.chosen else self._parts(module)
        self.covered |= wanted
        if len(plain) > 3:
            most = len(plain) // 2 - 1
            rest = list(islice(_Cover(self.index, under - self.chosen).plain(module), most + 1))
            if len(rest) <= most:
                return [_whole(module), *(f"!{pattern}" for pattern in rest)]
        return plain

    def _parts(self, module: str) -> list[str]:
        slots, children = self.index.inside[module]
        own = [slot for slot in slots if (name := self.index.aliases[slot]) in self.chosen and name not in self.covered]
        return [*map(_exact, own), *chain.from_iterable(map(self.best, children))]

    def plain(self, module: str) -> Iterator[str]:
        """Patterns for the same parameters without `!`."""
        under = set(self.index.under(module))
        if not (under & self.chosen) - self.covered:
            return
        if under <= self.chosen:
            self.covered |= under
            yield _whole(module)
            return
        slots, children = self.index.inside[module]
        for slot in slots:
            if (name := self.index.aliases[slot]) in self.chosen and name not in self.covered:
                self.covered.add(name)
                yield _exact(slot)
        for child in children:
            yield from self.plain(child)


def _whole(module: str) -> str:
    """The pattern of all parameters under a module."""
    if not module:
        return "*"
    return f"re:{re.escape(module)}\\..*" if _SPECIAL.match(module) else module


def _exact(parameter: str) -> str:
    """The pattern of one parameter, escaped if its name could be read as another pattern."""
    return f"re:{re.escape(parameter)}" if _SPECIAL.match(parameter) else parameter
