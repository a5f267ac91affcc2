"""Detect frozen layers that the backward pass runs through, if the order of layers is known."""

from __future__ import annotations

from lightning_freeze.engine.run_view import RunView
from lightning_freeze.report.timeline import stage_members


def backward_remarks(run: RunView) -> list[str]:
    """A remark if frozen layers lie above trainable ones: they still cost their backward pass."""
    order = _from_input(run)
    first = next((place for place, name in enumerate(order) if name in run.trainable), len(order))
    behind = [name for name in order[first:] if name not in run.trainable and name in run.can_train]
    if not behind:
        return []
    module = order[first].rpartition(".")[0] or order[first]
    return [
        f"The backward pass still runs through {len(behind)} frozen parameters (from {behind[0]} on), because {module} "
        "before them trains."
    ]


def _from_input(run: RunView) -> list[str]:
    """Parameters from the input to the head: in order of stages if there are any, else of registration."""
    if any(binding.trains and binding.labels for binding in run.bindings):
        staged = {name for binding in run.bindings for name in binding.trains}
        members = [names for names in stage_members(run).values() if staged.issuperset(names)]
        return [name for names in reversed(members) for name in reversed(names)]  # stages are head first
    return list(run.index.parameters)
