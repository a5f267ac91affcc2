"""Patterns to parameter names: a selection is a plain list of names, in `named_parameters()` order.

`ModelIndex` is one walk over a model; everything else in the package asks it for names. Names never
contain the prefixes that wrappers add, and a tied parameter has one name and answers to all of them.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from lightning_freeze.errors import PatternError
from lightning_freeze.model.index import ModelIndex

Patterns = str | Sequence[str]

_GLOB = re.compile(r"[*?\[]")


def as_patterns(patterns: Patterns) -> list[str]:
    """One string or a list of strings, as a list.

    Raises:
        PatternError: anything else.
    """
    found = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Sequence) else None
    if found is None or not all(isinstance(pattern, str) and pattern for pattern in found):
        raise PatternError(f"patterns must be a string or a list of strings, got {patterns!r}")
    return found


def resolve(
    patterns: Patterns,
    leaves: Mapping[str, Sequence[str]],
    containers: Mapping[str, Sequence[str]],
    owner: str,
    of: str,
) -> set[str]:
    """Apply a list of patterns to named things and return the set of what they select.

    Args:
        patterns: one pattern or several, applied in order (see `select`).
        leaves: name -> what it stands for; regular expressions and globs see these names.
        containers: name -> what lies under it; globs and plain names see these too.
        owner: who asks, for the error message (`GradualUnfreeze stage 'late'`).
        of: what is searched, for the error message (`the 62 parameters of LitResNet`).

    Raises:
        PatternError: a pattern matches nothing, is no regular expression, or begins the list with `!`.
    """
    chosen: set[str] = set()
    for position, pattern in enumerate(as_patterns(patterns)):
        negated = pattern.startswith("!")
        if negated and position == 0:
            raise PatternError(
                f"{owner}: pattern '{pattern}' takes away from the patterns before it, but none is.\n"
                f"  Put what it takes away from first, for example ['*', '{pattern}']"
            )
        found = set(_match(pattern.removeprefix("!"), leaves, containers, owner))
        if not found:
            raise PatternError(_nothing_matched(pattern, leaves, containers, owner, of))
        chosen = chosen - found if negated else chosen | found
    return chosen


def _match(
    pattern: str, leaves: Mapping[str, Sequence[str]], containers: Mapping[str, Sequence[str]], owner: str
) -> Iterator[str]:
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise PatternError(f"{owner}: pattern '{pattern}' is no regular expression: {error}") from None
        for name, targets in leaves.items():
            if expression.fullmatch(name):
                yield from targets
        return
    yield from leaves.get(pattern, ())
    yield from containers.get(pattern, ())
    if _GLOB.search(pattern):
        matches = re.compile(fnmatch.translate(pattern)).match
        for names in (leaves, containers):
            for name, targets in names.items():
                if matches(name):
                    yield from targets


def _nothing_matched(
    pattern: str,
    leaves: Mapping[str, Sequence[str]],
    containers: Mapping[str, Sequence[str]],
    owner: str,
    of: str,
) -> str:
    plain = pattern.removeprefix("!").removeprefix("re:")
    names = list(dict.fromkeys([*containers, *leaves]))
    lines = [f"{owner}: pattern '{pattern}' matches none of {of}."]
    if plain in containers:
        lines.append(f"  '{plain}' is a module without any.")
    closest = [name for name in names if name.endswith(f".{plain}")][:3]  # `fc`, and it is `model.fc`
    closest = closest or [name for name in difflib.get_close_matches(plain, names, n=3, cutoff=0.5) if name != plain]
    if not closest and "." in plain:  # the parent is right and the child is not: show the children
        parent = plain.rpartition(".")[0]
        closest = [name for name in names if name.rpartition(".")[0] == parent][:5]
    closest = closest or [name for name in containers if "." not in name][:5] or names[:5]
    if closest:
        lines.append(f"  Closest: {', '.join(closest)}")
    return "\n".join(lines)


def select_names(index: ModelIndex, patterns: Patterns, owner: str = "select") -> list[str]:
    """`select` on an index that is already there; `owner` opens the error message."""
    of = f"the {len(index.parameters)} parameters of {index.model_name}"
    chosen = resolve(patterns, index.leaves, index.containers, owner, of)
    return [name for name in index.parameters if name in chosen]


def select(model: nn.Module, patterns: Patterns) -> list[str]:
    r"""Names of the parameters that the patterns select, in `named_parameters()` order.

    Args:
        model: any module. Prefixes of wrappers (`torch.compile`, DDP, FSDP) are not part of a name.
        patterns: a pattern or a list of them, applied in order. `model.layer4` is a module with all
            parameters under it, `model.fc.weight` one parameter, `model.layer?.*.bn*` a shell glob over
            parameter and module names (`*` crosses dots), `re:...` a regular expression (full match over
            parameter names), and `!...` takes away from what the patterns before it selected.

    Raises:
        PatternError: a pattern matches nothing; the message names the closest parameters and modules.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
        >>> select(model, ["*", "!1"])
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> select(model, r"re:\d\.bias")
        ['0.bias', '1.bias', '2.bias']
    """
    return select_names(ModelIndex(model), patterns)
