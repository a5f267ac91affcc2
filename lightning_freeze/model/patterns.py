"""Patterns to parameter names: a selection is a plain list of names, in `named_parameters()` order.

A pattern is read once into terms (`&` between them) and matched term by term against what it searches. Names never
contain the prefixes that wrappers add, and a tied parameter has one name and answers to all of them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_freeze.errors import PatternError
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.model.layers import KINDS
from lightning_freeze.model.near_misses import disjoint, nothing_matched
from lightning_freeze.model.searchable import Searchable

Patterns = str | Sequence[str]

_GLOB = re.compile(r"[*?\[]")
_AND_AFTER_EXPRESSION = re.compile(r"(?:^|\s)\s*&\s*(?:\s|$)")  # `re:a&b` is one expression
_AND = re.compile(r"\s*&\s*")


@dataclass(frozen=True)
class Pattern:
    """A pattern as it was written, read.

    Attributes:
        text: as written.
        negated: whether it takes away from what the patterns before it selected.
        terms: what all have to select; but the first, each may begin with `!`: it must not select it.
    """

    text: str
    negated: bool
    terms: tuple[str, ...]


def parse(text: str, owner: str) -> Pattern:
    """Read a pattern; `owner` opens the error message.

    Raises:
        PatternError: nothing on one side of `&`, a kind that does not exist, or no regular expression.
    """
    body = text.removeprefix("!")
    terms = [term.strip() for term in _split(body)] if "&" in body else [body]
    if not all(term.removeprefix("!") for term in terms):
        raise PatternError(
            f"{owner}: pattern '{text}' has nothing on one side of '&'.\n"
            "  Write what both sides have to select, for example 'model.layer4 & kind:norm'"
        )
    for term in terms:
        _check_term(term.removeprefix("!"), text, owner)
    return Pattern(text, text.startswith("!"), tuple(terms))


def _split(body: str) -> Iterator[str]:
    for part in _AND_AFTER_EXPRESSION.split(body):
        yield from [part] if part.strip().removeprefix("!").startswith("re:") else _AND.split(part)


def _check_term(term: str, text: str, owner: str) -> None:
    if term.startswith("kind:") and term.removeprefix("kind:") not in KINDS:
        raise PatternError(
            f"{owner}: pattern '{text}' asks for the kind '{term.removeprefix('kind:')}', which does not exist.\n"
            f"  Kinds: {', '.join(KINDS)}"
        )
    if term.startswith("re:"):
        try:
            re.compile(term.removeprefix("re:"))
        except re.error as error:
            raise PatternError(f"{owner}: pattern '{text}' is no regular expression: {error}") from None


def as_strings(patterns: Patterns) -> list[str]:
    """One string or a list of strings, as a list.

    Raises:
        PatternError: anything else.
    """
    found = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Sequence) else None
    if found is None or not all(isinstance(pattern, str) and pattern for pattern in found):
        raise PatternError(f"patterns must be a string or a list of strings, got {patterns!r}")
    return found


def as_patterns(patterns: Patterns, owner: str = "patterns") -> list[str]:
    """One string or a list of strings, as a list of patterns that can be read; `owner` opens the error message.

    Raises:
        PatternError: anything else, or a pattern that cannot be read.
    """
    found = as_strings(patterns)
    for pattern in found:
        parse(pattern, owner)
    return found


def resolve(patterns: Patterns, searched: Searchable, owner: str) -> set[str]:
    """Apply a list of patterns to named things and return the set of what they select.

    Args:
        patterns: one pattern or several, applied in order (see `select`).
        searched: what they select from.
        owner: who asks, for the error message (`GradualUnfreeze stage 'late'`).

    Raises:
        PatternError: a pattern matches nothing, cannot be read, or begins the list with `!`.
    """
    chosen: set[str] = set()
    for position, text in enumerate(as_patterns(patterns, owner)):
        if text.startswith("!") and position == 0:
            raise PatternError(
                f"{owner}: pattern '{text}' takes away from the patterns before it, but there are none.\n"
                f"  Put what it takes away from first, for example ['*', '{text}']"
            )
        found = _matched(text, searched, owner)
        chosen = chosen - found if text.startswith("!") else chosen | found
    return chosen


def _matched(text: str, searched: Searchable, owner: str) -> set[str]:
    """What the terms of a pattern select together."""
    if (literal := text.removeprefix("!")) in searched.leaves or searched.containers.get(literal):
        return set(_match(literal, searched))  # also a name that holds an `&`
    pattern = parse(text, owner)
    chosen: set[str] | None = None
    for place, term in enumerate(pattern.terms):
        found = set(_match(term.removeprefix("!"), searched))
        if not found and not (place and _may_be_absent(term)):
            raise PatternError(nothing_matched(text, term.removeprefix("!"), searched, owner))
        before, chosen = chosen, found if chosen is None else chosen - found if term[0] == "!" else chosen & found
        if not chosen:
            raise PatternError(disjoint(pattern.terms[: place + 1], len(before or ()), len(found), text, owner))
    return chosen or set()


def _may_be_absent(term: str) -> bool:
    """Whether a term takes away a kind or a class that exists, so that the model may have none of it."""
    if term.startswith("!type:"):
        return any(cls.__name__ == term.removeprefix("!type:").strip() for cls in _all_subclasses(nn.Module))
    return term.startswith("!kind:")


def _all_subclasses(cls: type) -> Iterator[type]:
    child: type
    for child in cls.__subclasses__():
        yield child
        yield from _all_subclasses(child)


def _match(term: str, searched: Searchable) -> Iterator[str]:
    prefix, colon, rest = term.partition(":")
    if colon and prefix == "kind":
        yield from searched.kinds.get(rest, ())
    elif colon and prefix == "type":
        yield from searched.classes.get(rest.strip(), ())
    elif colon and prefix == "re":
        yield from _match_expression(re.compile(rest), searched)
    else:
        yield from _match_name(term, searched)


def _match_expression(expression: re.Pattern[str], searched: Searchable) -> Iterator[str]:
    for name, targets in searched.leaves.items():
        if expression.fullmatch(name):
            yield from targets


def _match_name(name: str, searched: Searchable) -> Iterator[str]:
    yield from searched.leaves.get(name, ())
    yield from searched.containers.get(name, ())
    if _GLOB.search(name):
        matches = re.compile(fnmatch.translate(name)).match
        for names in (searched.leaves, searched.containers):
            for candidate, targets in names.items():
                if matches(candidate):
                    yield from targets


def select_names(index: ModelIndex, patterns: Patterns, owner: str = "select") -> list[str]:
    """`select` on an index that is already there; `owner` opens the error message."""
    chosen = resolve(patterns, index.searchable, owner)
    return [name for name in index.parameters if name in chosen]


def select(model: nn.Module, patterns: Patterns) -> list[str]:
    r"""Names of the parameters that the patterns select, in `named_parameters()` order.

    Args:
        model: any module. Prefixes of wrappers (`torch.compile`, DDP, FSDP) are not part of a name.
        patterns: a pattern or a list of them, applied in order. `model.layer4` is a module with all
            parameters under it, `model.fc.weight` one parameter, `model.layer?.*.bn*` a shell glob over
            parameter and module names (`*` crosses dots), `re:...` a regular expression (full match over
            parameter names). `kind:norm`, `kind:bias` and `kind:embedding` are all parameters of that kind, in layers
            of any library; `type:Conv2d` those directly in modules of a class or of one derived from it. `A & B` is
            what both select, `A & !kind:norm` what is in A and of no such kind, and `!...` takes away from what the
            patterns before it selected.

    Raises:
        PatternError: a pattern matches nothing; the message names the closest parameters, modules or classes.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
        >>> select(model, ["*", "!kind:norm"])
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> select(model, "type:Linear & kind:bias")
        ['0.bias', '2.bias']
        >>> select(model, r"re:\d\.bias")
        ['0.bias', '1.bias', '2.bias']
    """
    return select_names(ModelIndex(model), patterns)
