"""Resolve patterns to parameter names: a plain list in `named_parameters()` order.

A pattern is parsed once into terms joined by `&`; each term is matched on its own. Names never contain prefixes of
wrappers. A tied parameter is listed under one name and can be selected by all of its names.
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
    """A parsed pattern.

    Attributes:
        text: as written.
        negated: whether it removes names from the selection of the patterns before it.
        terms: a name is selected if all terms select it. A term after the first may begin with `!` to exclude names.
    """

    text: str
    negated: bool
    terms: tuple[str, ...]


def parse(text: str, owner: str) -> Pattern:
    """Parse a pattern; `owner` is the subject of the error message.

    Raises:
        PatternError: one side of `&` is empty, the kind does not exist, or the regular expression is invalid.
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
            raise PatternError(f"{owner}: pattern '{text}' is not a valid regular expression: {error}") from None


def as_strings(patterns: Patterns) -> list[str]:
    """Turn one string or a list of strings into a list.

    Raises:
        PatternError: anything else.
    """
    found = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Sequence) else None
    if found is None or not all(isinstance(pattern, str) and pattern for pattern in found):
        raise PatternError(f"patterns must be a string or a list of strings, got {patterns!r}")
    return found


def as_patterns(patterns: Patterns, owner: str = "patterns") -> list[str]:
    """Check that one string or a list of strings can be parsed, and return a list; `owner` is for error messages.

    Raises:
        PatternError: anything else, or a pattern that cannot be parsed.
    """
    found = as_strings(patterns)
    for pattern in found:
        parse(pattern, owner)
    return found


def resolve(patterns: Patterns, searched: Searchable, owner: str) -> set[str]:
    """Apply a list of patterns to names, and return the set of selected names.

    Args:
        patterns: one pattern or several, applied in order (see `select`).
        searched: the names to select from.
        owner: the subject of the error message (`GradualUnfreeze stage 'late'`).

    Raises:
        PatternError: a pattern matches nothing, cannot be parsed, or is the first of the list and begins with `!`.
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
    """The names that all terms of a pattern select."""
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
    """Whether a term excludes an existing kind or class. Such a term may match nothing in a model."""
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
    """`select` for an existing index; `owner` is the subject of the error message."""
    chosen = resolve(patterns, index.searchable, owner)
    return [name for name in index.parameters if name in chosen]


def select(model: nn.Module, patterns: Patterns) -> list[str]:
    r"""The names of the selected parameters, in `named_parameters()` order.

    Args:
        model: any module. Prefixes of wrappers (`torch.compile`, DDP, FSDP) are not part of a name.
        patterns: a pattern or a list of them, applied in order. `model.layer4` is a module with all
            parameters under it, `model.fc.weight` one parameter, `model.layer?.*.bn*` a shell glob over
            parameter and module names (`*` crosses dots), `re:...` a regular expression (full match over
            parameter names). `kind:norm`, `kind:bias` and `kind:embedding` select all parameters of that kind, in
            layers of any library; `type:Conv2d` selects those directly in modules of this class or a subclass.
            `A & B` selects what both select, `A & !kind:norm` what is in A and of another kind. `!...` removes
            parameters from the selection of the patterns before it.

    Raises:
        PatternError: a pattern matches nothing; the message names the closest parameters, modules or classes.

    Examples:
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
