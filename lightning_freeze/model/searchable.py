"""What a list of patterns searches: names, what they stand for, and their kinds and classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from torch import Tensor, nn

from lightning_freeze.model.layers import kinds_of


@dataclass(frozen=True)
class Member:
    """One name that patterns see.

    Attributes:
        name: full dotted name.
        module: the module it lies in directly; of a parametrized tensor the module that has the parametrization.
        leaf: its name there.
        tensor: its value; None for a layer that stands for itself.
        target: the name of what it selects.
    """

    name: str
    module: nn.Module
    leaf: str
    tensor: Tensor | None
    target: str


class Searchable:
    """Named things that patterns select from.

    Args:
        leaves: name -> what it stands for; regular expressions and globs see these names.
        containers: module name -> what lies under it; globs and plain names see these too.
        members: the leaves with the modules that they lie in; asked when a pattern needs kinds or classes.
        modules: all modules of the model, whose classes error messages name.
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
        """Kind -> what is of it."""
        found: dict[str, set[str]] = {}
        for member in self._members():
            for kind in kinds_of(member.module, member.leaf, member.tensor):
                found.setdefault(kind, set()).add(member.target)
        return found

    @cached_property
    def classes(self) -> dict[str, set[str]]:
        """Name of a class -> what lies directly in modules of it or of a class derived from it."""
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
        """Names of the classes of all modules, base classes included, those that selecting by makes sense first."""
        classes = dict.fromkeys(map(type, self._modules))
        bases = chain.from_iterable(cls.__mro__ for cls in classes)
        return list(dict.fromkeys(cls.__name__ for cls in chain(classes, bases) if cls is not object))


def searchable(members: Sequence[Member], modules: Mapping[str, nn.Module], of: str) -> Searchable:
    """The searchable form of named things.

    Args:
        members: a member for each name.
        modules: name -> module of the model; one with no member under it is known as such.
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
