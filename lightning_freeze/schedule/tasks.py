"""The tasks of a batch, read from one of its keys; also for the combined batches of a `CombinedLoader`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_freeze.errors import PlanError


def tasks_of(batch: Any, key: str, known: Collection[str]) -> frozenset[str]:
    """The names of the tasks of a batch.

    Args:
        batch: a mapping with the key `key` (or an object with such an attribute); or a mapping, list or tuple of
            batches, in which None stands for an exhausted loader. A mapping of batches needs no `key` in them if its
            own keys are all tasks.
        key: the key of the task, whose value is a str or nested sequences and sets of str.
        known: the names of all tasks.

    Raises:
        PlanError: the value of the key is not a task.

    Examples:
        >>> sorted(tasks_of({"x": 1, "task": ["names", "pictures", "names"]}, "task", ["names", "pictures"]))
        ['names', 'pictures']
        >>> sorted(tasks_of({"names": [1, 2], "pictures": None}, "task", ["names", "pictures"]))
        ['names']
    """
    return frozenset(_inside(batch, key, known))


def _inside(batch: Any, key: str, known: Collection[str]) -> Iterator[str]:
    if isinstance(batch, Mapping):
        if key in batch:
            yield from names_in(batch[key], f"the batch holds under '{key}'")
            return
        keys_are_tasks = all(name in known for name in batch)
        for name, part in batch.items():
            found = set(_inside(part, key, known))
            yield from found or ({name} if keys_are_tasks and part is not None else ())
    elif isinstance(batch, list | tuple) and key not in getattr(batch, "_fields", ()):
        for part in batch:
            yield from _inside(part, key, known)
    elif hasattr(batch, key) and not isinstance(batch, Tensor | str | bytes):
        yield from names_in(getattr(batch, key), f"the batch holds as .{key}")


def names_in(value: Any, where: str) -> Iterator[str]:
    """Yield every str in a str or in nested sequences and sets of str.

    Raises:
        PlanError: there is something other than str.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, Tensor | bytes | Mapping):
        for item in value:
            yield from names_in(item, where)
    else:
        raise PlanError(
            f"{where} a {type(value).__name__}, and a task is a str.\n"
            "  Store the name of the task, or a list with the name of the task of each row"
        )


def describe_batch(batch: Any) -> str:
    """Describe a batch for an error message.

    Examples:
        >>> describe_batch({"x": 1, "y": 2}), describe_batch([1, "a"])
        ("a dict with the keys 'x', 'y'", 'a list of int, str')
    """
    kind = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        return f"{kind} with the keys {', '.join(map(repr, batch))}" if batch else f"{kind} without keys"
    if isinstance(batch, list | tuple):
        return f"{kind} of {', '.join(type(part).__name__ for part in batch)}" if batch else f"{kind} of nothing"
    return kind
