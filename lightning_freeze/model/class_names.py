"""Classes of packages that may not be installed are known by name: the class itself, or a base class of it."""

from __future__ import annotations


def class_names(thing: object) -> frozenset[str]:
    """The names of the class of a thing and of all its base classes.

    Example:
        >>> sorted(class_names(True))
        ['bool', 'int', 'object']
    """
    return frozenset(cls.__name__ for cls in type(thing).__mro__)


def is_named(thing: object, *names: str) -> bool:
    """Whether the class of a thing, or a base class of it, has one of these names.

    Example:
        >>> is_named(True, "int", "str")
        True
    """
    return not class_names(thing).isdisjoint(names)
