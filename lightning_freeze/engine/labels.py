"""Combine the stages of several policies that divide the model differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def joined_labels(by_policy: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Parameter -> one label, shared by the parameters that have the same labels in all policies.

    A stage that lies within a single stage of every other policy keeps its name; otherwise names are joined.

    Args:
        by_policy: parameter -> its label in each policy, "" for none.
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
    """The first label that occurs only in this combination, else all labels joined."""
    for place, label in enumerate(labels):
        if label and sum(other[place] == label for other in combinations) == 1:
            return label
    return "-and-".join(sorted(set(filter(None, labels))))
