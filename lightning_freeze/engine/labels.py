"""The stage of each parameter where several policies divide the model, each in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def joined_labels(by_policy: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Parameter -> one label: parameters that all policies call the same share it, others do not.

    A stage that lies within one stage of every other policy keeps its name alone; else the names are joined.

    Args:
        by_policy: parameter -> what each policy calls it, "" for nothing.
    """
    combinations = list(dict.fromkeys(tuple(labels) for labels in by_policy.values()))
    names = [_short(labels, combinations) for labels in combinations]
    taken = [name for name in names if names.count(name) > 1]
    named = {
        labels: name if name not in taken else "-and-".join(sorted(set(filter(None, labels))))
        for labels, name in zip(combinations, names, strict=True)
    }
    return {name: named[tuple(labels)] for name, labels in by_policy.items()}


def _short(labels: Sequence[str], combinations: Sequence[Sequence[str]]) -> str:
    """The first label that occurs in this combination only, else all of them."""
    for place, label in enumerate(labels):
        if label and sum(other[place] == label for other in combinations) == 1:
            return label
    return "-and-".join(sorted(set(filter(None, labels))))
