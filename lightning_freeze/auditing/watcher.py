"""The state between two audits: hashes of frozen tensors, and parameters that still wait for a gradient."""

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
    """Follow the changes of a run from the moment of construction.

    Args:
        view: returns a view of the current run.
        ignored: names of parameters and buffers that may be written.
    """

    def __init__(self, view: Callable[[], RunView], ignored: Collection[str] = ()) -> None:
        self._view = view
        self.ignored = frozenset(ignored)
        self.hashes: dict[str, int] = {}
        self._right: dict[str, str] = {}  # when each was last checked and correct
        self._unseen: dict[str, str] = {}  # trainable parameters without a gradient so far -> since when
        self._stepped: set[str] = set()  # those of them whose optimizer has stepped since
        self._since: dict[str, int] = {}  # parameter -> step at which it was last frozen or unfrozen
        self._handles: list[Any] = []
        self._standing: set[tuple[str, str]] = set()  # lasting violations: name, what is wrong
        self._accepted: set[tuple[str, str]] = set()  # those of them that have been reported
        self._epoch = self.run.progress.epoch
        self._last = f"the start, in {self._now}"
        self._fingerprint(self._frozen_now(), self._now)
        self._expect(self.run.trainable)

    @property
    def run(self) -> RunView:
        """A view of the current run."""
        return self._view()

    @property
    def _now(self) -> str:
        return f"epoch {self.run.progress.epoch}, step {self.run.progress.step}"

    def _frozen_now(self) -> list[str]:
        """The frozen parameters, and the buffers of held modules."""
        index = self.run.index
        names = [name for name in index.parameters if name not in self.run.trainable]
        return [name for name in (*names, *buffers_of(index, self.run.held)) if name not in self.ignored]

    def _fingerprint(self, names: Collection[str], when: str) -> None:
        self.hashes.update(hashes_of(tensors_of(self.run.index, names)))
        self._right.update(dict.fromkeys(names, f"when it was frozen, in {when}"))

    def follow(self, done: Change) -> None:
        """Follow a change: hash parameters that were frozen, forget those that train now.

        Parameters that trained for a few steps only, such as the branch of a task, are hashed when the next epoch
        begins: hashing them at every step would cost more than the step.
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
        """Wait for the first gradient of each parameter, checking after every step of its optimizer."""
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
        if all(parameter.grad is None for group in optimizer.param_groups for parameter in group["params"]):
            return  # a step without a backward pass, as in the epoch that SWA adds
        run = self.run
        idle = {name for policy in run.policies if policy.idles for name in policy.idle(optimizer)}
        for name in waiting:
            if run.index.parameters[name].grad is not None:
                del self._unseen[name]
            elif name in run.trainable and name not in idle:
                self._stepped.add(name)

    def unused(self) -> list[str]:
        """Trainable parameters that got no gradient in any step, without duplicates: the loss does not use them."""
        run = self.run
        waiting = self._stepped.intersection(self._unseen, run.trainable)
        names = [name for name in run.index.parameters if name in waiting]
        for name in names:
            del self._unseen[name]
        return [name for name in names if name not in self.ignored]

    # ---- the audit

    def audit(self, optimizers: Sequence[Any], when: str, writers: Sequence[str] = ()) -> list[Violation]:
        """All violations of what was declared.

        Args:
            optimizers: the optimizers that currently step.
            when: the current moment, for later messages.
            writers: other callbacks that may write parameters.
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
        if not self._unseen:  # a hook cannot remove itself while the optimizer iterates over its hooks
            self.close()
        return violations

    def accept(self) -> None:
        """Take the current state as the reference, so that each violation is reported once."""
        self._fingerprint(list(self.hashes), self._now)
        self._accepted = set(self._standing)

    def fingerprint(self) -> dict[str, int]:
        """The tensors that must be equal on all ranks: parameters, and the buffers of held modules."""
        names = [*self.run.index.parameters, *buffers_of(self.run.index, self.run.held)]
        return hashes_of(tensors_of(self.run.index, names))

    def close(self) -> None:
        """Remove all hooks from the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def differing(fingerprints: Sequence[dict[str, int]], watcher: Watcher) -> list[Violation]:
    """The tensors whose bits differ between ranks, or that some ranks do not have."""
    cause = "it was written on one rank only, or DDP did not reduce its gradient"
    names = list(dict.fromkeys(name for one in fingerprints for name in one))
    found = []
    for name in names:
        ranks = [rank for rank, one in enumerate(fingerprints) if one.get(name) != fingerprints[0].get(name)]
        if ranks and name not in watcher.ignored:
            found.append(Violation(name, f"has other bits on rank {ranks[0]} than on rank 0", cause))
    return placed(found, watcher.run.index, watcher.run.labels, {}, "")
