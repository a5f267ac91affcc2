"""What an audit has to remember between two audits: the bits of what is frozen, and who has seen a gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.auditing.violations import (
    Violation,
    flag_violations,
    group_violations,
    mode_violations,
    moved,
    placed,
    replaced,
)
from lightning_freeze.engine.declarations import Change
from lightning_freeze.engine.run_view import RunView
from lightning_freeze.model.fingerprint import hashes_of
from lightning_freeze.model.index import buffers_of, tensors_of

_SHORT = 10  # optimizer steps; see Watcher.follow


class Watcher:
    """Follows a reconciler through its changes, from the moment it is made.

    Args:
        view: returns the run as it is now.
        ignored: names of parameters and buffers that may be written.
    """

    def __init__(self, view: Callable[[], RunView], ignored: Collection[str] = ()) -> None:
        self._view = view
        self.ignored = frozenset(ignored)
        self.hashes: dict[str, int] = {}
        self._right: dict[str, str] = {}  # when each was last seen to be right
        self._unseen: dict[str, str] = {}  # trainable, without a gradient yet -> since when
        self._stepped: set[str] = set()  # of these, the ones whose optimizer has stepped since
        self._since: dict[str, int] = {}  # parameter -> the step at which it last changed sides
        self._handles: list[Any] = []
        self._standing: set[tuple[str, str]] = set()  # what stays wrong until it is put right: name, what was found
        self._accepted: set[tuple[str, str]] = set()  # of these, the ones that have been reported
        self._epoch = self.run.progress.epoch
        self._last = f"the start, in {self._now}"
        self._fingerprint(self._frozen_now(), self._now)
        self._expect(self.run.trainable)

    @property
    def run(self) -> RunView:
        """The run as it is now."""
        return self._view()

    @property
    def _now(self) -> str:
        return f"epoch {self.run.progress.epoch}, step {self.run.progress.step}"

    def _frozen_now(self) -> list[str]:
        """Frozen parameters, and the buffers of held modules."""
        index = self.run.index
        names = [name for name in index.parameters if name not in self.run.trainable]
        return [name for name in (*names, *buffers_of(index, self.run.held)) if name not in self.ignored]

    def _fingerprint(self, names: Collection[str], when: str) -> None:
        self.hashes.update(hashes_of(tensors_of(self.run.index, names)))
        self._right.update(dict.fromkeys(names, f"when it was frozen, in {when}"))

    def follow(self, done: Change) -> None:
        """Take in a change: fingerprint what froze, forget what trains now.

        What trained for a few steps only, as the branch of a task does, is fingerprinted again when an epoch begins,
        not each time: hashing it at every step would cost more than the step.
        """
        step, begins = self.run.progress.step, self.run.progress.epoch != self._epoch
        self._epoch = self.run.progress.epoch
        short = {name for name in (*done.frozen, *done.unfrozen) if step - self._since.get(name, -_SHORT) < _SHORT}
        self._since.update(dict.fromkeys((*done.frozen, *done.unfrozen), step))
        wanted = self._frozen_now()
        for name in set(self.hashes).difference(wanted):
            del self.hashes[name], self._right[name]
        for name in done.restored:
            self.hashes.pop(name, None)
        fresh = [name for name in wanted if name not in self.hashes and (begins or name not in short)]
        self._fingerprint(fresh, self._now)
        self._expect([name for name in done.unfrozen if name not in short])

    # ---- gradients

    def _expect(self, names: Collection[str]) -> None:
        """Look for the first gradient of each, after every step of its optimizer until all have come."""
        self._unseen.update(dict.fromkeys(names, self._now))
        self._stepped.difference_update(names)
        if self._unseen and not self._handles:
            run = self.run
            for place, optimizer in enumerate(run.optimizers):
                names = frozenset(name for slot in run.slots if slot.optimizer == place for name in slot.names)
                self._handles.append(optimizer.register_step_post_hook(partial(self._look, names)))

    def _look(self, names: Collection[str], optimizer: Optimizer, *_: Any) -> None:
        waiting = [name for name in self._unseen if name in names]
        if not waiting:
            return
        run = self.run
        idle = {name for policy in run.policies if policy.idles for name in policy.idle(optimizer)}
        for name in waiting:
            if run.index.parameters[name].grad is not None:
                del self._unseen[name]
            elif name in run.trainable and name not in idle:
                self._stepped.add(name)

    def unused(self) -> list[str]:
        """Trainable parameters that no step has given a gradient, each once: the loss does not depend on them."""
        run = self.run
        waiting = self._stepped.intersection(self._unseen, run.trainable)
        names = [name for name in run.index.parameters if name in waiting]
        for name in names:
            del self._unseen[name]
        return [name for name in names if name not in self.ignored]

    # ---- the audit

    def audit(self, optimizers: Sequence[Any], when: str, writers: Sequence[str] = ()) -> list[Violation]:
        """Everything that is not as it was declared.

        Args:
            optimizers: those that step now.
            when: the moment, for later messages.
            writers: callbacks beside this one that may write parameters.
        """
        run, torch_optimizers = self.run, [one for one in optimizers if isinstance(one, Optimizer)]
        standing = [
            *([] if run.sharded else replaced(run.index)),
            *flag_violations(run.index, run.trainable),
            *group_violations(run.index, run.trainable, torch_optimizers),
            *mode_violations(run.index, run.held),
        ]
        self._standing = {(one.name, one.found) for one in standing}
        self._accepted &= self._standing
        found = [
            *moved(run.index, self.hashes, run.trainable, torch_optimizers, writers),
            *[one for one in standing if (one.name, one.found) not in self._accepted],
        ]
        found = [one for one in found if one.name not in self.ignored]
        violations = placed(found, run.index, run.labels, self._right, self._last)
        self._last = when
        wrong = {one.name for one in violations}
        self._right.update(dict.fromkeys(set(self.hashes) - wrong, when))
        if not self._unseen:  # a hook cannot remove itself while the optimizer goes through its hooks
            self.close()
        return violations

    def accept(self) -> None:
        """Go on from what is there now, so that one violation is reported once."""
        self._fingerprint(list(self.hashes), self._now)
        self._accepted = set(self._standing)

    def fingerprint(self) -> dict[str, int]:
        """What all ranks have to agree on: parameters, and the buffers of held modules."""
        names = [*self.run.index.parameters, *buffers_of(self.run.index, self.run.held)]
        return hashes_of(tensors_of(self.run.index, names))

    def close(self) -> None:
        """Leave the optimizers alone."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def differing(fingerprints: Sequence[dict[str, int]], watcher: Watcher) -> list[Violation]:
    """The tensors whose bits are not the same on all ranks; what only some ranks have counts too."""
    cause = "it was written on one rank only, or DDP did not reduce its gradient"
    names = list(dict.fromkeys(name for one in fingerprints for name in one))
    found = []
    for name in names:
        ranks = [rank for rank, one in enumerate(fingerprints) if one.get(name) != fingerprints[0].get(name)]
        if ranks and name not in watcher.ignored:
            found.append(Violation(name, f"has other bits on rank {ranks[0]} than on rank 0", cause))
    return placed(found, watcher.run.index, watcher.run.labels, {}, "")
