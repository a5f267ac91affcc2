"""Recognise classes of packages that may not be installed by the name of the class or of a base class."""

from __future__ import annotations


def class_names(thing: object) -> frozenset[str]:
    """The names of an object's class and of all its base classes.

    Examples:
        >>> sorted(class_names(True))
        ['bool', 'int', 'object']
    """
    return frozenset(cls.__name__ for cls in type(thing).__mro__)


def is_named(thing: object, *names: str) -> bool:
    """Whether an object's class, or one of its base classes, has one of these names.

    Examples:
        >>> is_named(True, "int", "str")
        True
    """
    return not class_names(thing).isdisjoint(names)
