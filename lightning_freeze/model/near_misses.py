"""Error messages for patterns that select nothing, with the closest names, classes or expressions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from lightning_freeze.model.searchable import Searchable

_LOOKS_LIKE_EXPRESSION = re.compile(r"\\|\.\*|\.\+|[\^$|(){}+]")


def nothing_matched(text: str, term: str, searched: Searchable, owner: str) -> str:
    """The message for a term that matches nothing.

    Args:
        text: the pattern as written.
        term: the part that matches nothing, without `!`.
        searched: the names that were searched.
        owner: the subject of the message, such as a callback or a stage.
    """
    part = "" if term == text.removeprefix("!") else f": '{term}'"
    lines = [f"{owner}: pattern '{text}'{part} matches none of {searched.of}."]
    if term.startswith("type:"):
        lines += _closest_classes(term.removeprefix("type:").strip(), searched)
    elif not term.startswith("kind:"):
        lines += _expression_meant(term, searched) or _closest_names(term.removeprefix("re:"), searched)
    return "\n".join(lines)


def disjoint(terms: Sequence[str], before: int, found: int, text: str, owner: str) -> str:
    """The message for terms that each select something, but have nothing in common."""
    left, right = " & ".join(terms[:-1]), terms[-1].removeprefix("!")
    verdict = "all of them" if terms[-1].startswith("!") else "none of them"
    return (
        f"{owner}: pattern '{text}' selects nothing: '{left}' selects {before}, and {verdict} are among the {found} of "
        f"'{right}'.\n  Change one side, or write both into a list to have them added up"
    )


def _closest_classes(name: str, searched: Searchable) -> list[str]:
    if name in searched.classes_of_model:
        return [
            f"  Modules of class '{name}' have none directly in them; what lies under them goes by the names of the "
            "modules, such as 'model.layer4' or a glob"
        ]
    known = [known for known in searched.classes_of_model if known in searched.classes]
    by_lower = {known.lower(): known for known in reversed(known)}
    near = difflib.get_close_matches(name.rpartition(".")[2].lower(), list(by_lower), n=3, cutoff=0.5)
    names = [by_lower[lower] for lower in near] or known[:5]
    return [f"  Closest classes: {', '.join(names)}"] if names else []


def _expression_meant(term: str, searched: Searchable) -> list[str]:
    """The regular expression that a pattern without `re:` seems to mean, if it matches something."""
    plain = term.removeprefix("re:")
    if term == plain and not _LOOKS_LIKE_EXPRESSION.search(plain):
        return []
    for candidate in (plain, f"{plain}.*", f".*{plain}", f".*{plain}.*"):
        try:
            count = sum(re.fullmatch(candidate, name) is not None for name in searched.leaves)
        except re.error:
            return []
        if count:
            return [f"  Did you mean 're:{candidate}'? It matches {count}"]
    return []


def _closest_names(plain: str, searched: Searchable) -> list[str]:
    filled = [name for name, targets in searched.containers.items() if targets]
    names = list(dict.fromkeys([*filled, *searched.leaves]))
    lines = [f"  '{plain}' is a module without any."] if plain in searched.containers else []
    closest = [name for name in names if name.endswith(f".{plain}")][:3]  # `fc`, and it is `model.fc`
    closest = closest or [name for name in difflib.get_close_matches(plain, names, n=3, cutoff=0.5) if name != plain]
    if not closest and "." in plain:  # the parent is right and the child is not: show the children
        parent = plain.rpartition(".")[0]
        closest = [name for name in names if name.rpartition(".")[0] == parent][:5]
    closest = closest or [name for name in filled if "." not in name][:5] or names[:5]
    return [*lines, f"  Closest: {', '.join(closest)}"] if closest else lines
