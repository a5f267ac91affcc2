"""Predict what a run will do in later epochs, by asking copies of its policies."""

from __future__ import annotations

import copy

from lightning_freeze.engine.policy import Policy
from lightning_freeze.engine.run_view import RunView
from lightning_freeze.schedule.moments import Progress

_EPOCHS = 1000  # maximum number of epochs to predict


def idle_epochs(run: RunView) -> dict[int, list[int]]:
    """Index of an optimizer -> epochs at whose start none of its parameters trains, for optimizers with such epochs.

    Metric triggers are assumed never to fire. With a single optimizer the result is empty, because a run in which
    nothing trains is refused. This is a collective: a policy may let rank 0 decide.

    Args:
        run: the run at its start, with a calendar in its progress.
    """
    calendar = run.progress.calendar
    if len(run.optimizers) < 2 or calendar is None:
        return {}
    members = [
        {name for slot in run.slots if slot.optimizer == k for name in slot.names} for k in range(len(run.optimizers))
    ]
    deciding = [copy.deepcopy(policy) for policy in run.policies if type(policy).wants is not Policy.wants]
    found: dict[int, list[int]] = {}
    for epoch in range(run.progress.epoch, _EPOCHS):
        steps = calendar.start_of(epoch)
        if steps >= calendar.end:
            break
        progress = Progress(epoch, int(steps) * calendar.optimizers, run.progress.total_steps, calendar)
        trainable = run.can_train.difference(*(policy.wants(progress).frozen for policy in deciding))
        for place, names in enumerate(members):
            if names and trainable.isdisjoint(names):
                found.setdefault(place, []).append(epoch)
    return found
