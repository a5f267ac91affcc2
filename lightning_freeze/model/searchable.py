"""The names that patterns search, with the parameters, kinds and classes behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from torch import Tensor, nn

from lightning_freeze.model.layers import kinds_of


@dataclass(frozen=True)
class Member:
    """One name that patterns can match.

    Attributes:
        name: full dotted name.
        module: the module that contains it directly; for a parametrized tensor, the module with the parametrization.
        leaf: its attribute name there.
        tensor: its value; None for a layer selected as a whole.
        target: the name that is selected.
    """

    name: str
    module: nn.Module
    leaf: str
    tensor: Tensor | None
    target: str


class Searchable:
    """Names to select from.

    Args:
        leaves: name -> target; regular expressions and globs match these names.
        containers: module name -> targets under it; globs and plain names match these too.
        members: the leaves with their modules; used by patterns with kinds or classes.
        modules: all modules of the model; error messages name their classes.
        of: what is searched, for error messages (`the 62 parameters of LitResNet`).
    """

    def __init__(
        self,
        leaves: Mapping[str, Sequence[str]],
        containers: Mapping[str, Sequence[str]],
        members: Callable[[], Iterable[Member]],
        modules: Sequence[nn.Module],
        of: str,
    ) -> None:
        self.leaves, self.containers, self.of = leaves, containers, of
        self._members, self._modules = members, modules

    @cached_property
    def kinds(self) -> dict[str, set[str]]:
        """Kind -> targets of this kind."""
        found: dict[str, set[str]] = {}
        for member in self._members():
            for kind in kinds_of(member.module, member.leaf, member.tensor):
                found.setdefault(kind, set()).add(member.target)
        return found

    @cached_property
    def classes(self) -> dict[str, set[str]]:
        """Class name -> targets directly in modules of this class or a subclass."""
        by_class: dict[type, set[str]] = {}
        for member in self._members():
            by_class.setdefault(type(member.module), set()).add(member.target)
        found: dict[str, set[str]] = {}
        for cls, targets in by_class.items():
            for name in {base.__name__ for base in cls.__mro__}:
                found.setdefault(name, set()).update(targets)
        return found

    @cached_property
    def classes_of_model(self) -> list[str]:
        """Class names of all modules, base classes included, the most useful ones for selection first."""
        classes = dict.fromkeys(map(type, self._modules))
        bases = chain.from_iterable(cls.__mro__ for cls in classes)
        return list(dict.fromkeys(cls.__name__ for cls in chain(classes, bases) if cls is not object))


def searchable(members: Sequence[Member], modules: Mapping[str, nn.Module], of: str) -> Searchable:
    """Make the searchable form of names.

    Args:
        members: one member for each name.
        modules: name -> module of the model; error messages can tell modules without members.
        of: what is searched, for error messages.
    """
    leaves: dict[str, list[str]] = {}
    containers: dict[str, list[str]] = {name: [] for name in modules if name}
    for member in members:
        leaves.setdefault(member.name, []).append(member.target)
        parts = member.name.split(".")
        for depth in range(1, len(parts)):
            containers.setdefault(".".join(parts[:depth]), []).append(member.target)
    return Searchable(leaves, containers, lambda: members, list(modules.values()), of)
