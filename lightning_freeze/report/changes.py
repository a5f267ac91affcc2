"""The line at each change: when, what, and how much trains now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lightning_freeze.engine.declarations import Change
from lightning_freeze.engine.run_view import RunView
from lightning_freeze.report.rendering import percent


def change_line(run: RunView, done: Change) -> str:
    """One line about a change: when, what, and how much trains now."""
    parts = [
        f"{verb} {_places(run, names)}"
        for verb, names in (("unfrozen", done.unfrozen), ("frozen", done.frozen))
        if names
    ]
    parts = [*(reason for policy in run.policies for reason in policy.reasons()), *parts]
    if not parts:
        return ""
    trainable = sum(run.index.parameters[name].numel() for name in run.trainable)
    total = sum(parameter.numel() for parameter in run.index.parameters.values())
    where = f"epoch {run.progress.epoch}, step {run.progress.step}"
    return f"{where}: {'; '.join(parts)}; {trainable:,} parameters ({percent(trainable, total)}) train"


def _places(run: RunView, names: Sequence[str]) -> str:
    """The stages of these parameters, named by the policy that needs the fewest names."""
    divisions = [binding.labels for binding in run.bindings if all(binding.labels.get(name) for name in names)]
    counts = [Counter(labels[name] for name in names) for labels in divisions]
    place = min(range(len(counts)), key=lambda one: len(counts[one]), default=None)
    if place is None or len(counts[place]) > 4:
        return f"{len(names)} parameters ({names[0]}" + (f" to {names[-1]})" if len(names) > 1 else ")")
    whole = Counter(divisions[place].get(name, "") for name in run.can_train)
    return ", ".join(
        label if count == whole[label] else f"{count} of {whole[label]} tensors of {label}"
        for label, count in counts[place].items()
    )
