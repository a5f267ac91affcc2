"""Merge what all policies want, and apply it to the model and its optimizers. Nothing else changes a model.

`Reconciler` needs no Trainer: plain training loops, the preview and the callbacks all use it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_freeze.engine import snapshot
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Change, Wants
from lightning_freeze.engine.frozen_before import check_stages_train
from lightning_freeze.engine.held_modules import HeldModules
from lightning_freeze.engine.labels import joined_labels
from lightning_freeze.engine.options import merged_options
from lightning_freeze.engine.policy import Policy, shared_stages
from lightning_freeze.engine.records import entry_of, load_entries
from lightning_freeze.engine.run_view import RunView
from lightning_freeze.engine.shard_groups import check_dtypes
from lightning_freeze.engine.updates import Updates
from lightning_freeze.errors import PlanError, ResumeError
from lightning_freeze.model.dtensors import gathered, is_sharded, is_sharded_tensor, reshard
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.model.index import check_initialized
from lightning_freeze.optim.joining import join_homeless
from lightning_freeze.optim.slots import PLACEMENTS, Placement
from lightning_freeze.optim.slotted import SlottedOptimizer
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.stages.discovery import Discovery


class Reconciler:
    """A model with its optimizers under a list of policies, for one fit.

    Args:
        model: the module whose parameters are frozen.
        policies: the policies, in any order.
        optimizers: optimizers that contain all trainable parameters; they are split into slots.
        schedulers: the LR schedulers of these optimizers.
        agree: called with the new trainable set before anything changes; raises if ranks differ.
        rebuild: called after the trainable set has changed; rebuilds a DDP wrapper and returns whether it did.
        discovery: discovers stages.

    Raises:
        FreezeError: names, arguments, optimizers or schedulers cannot work; nothing has been changed.
    """

    def __init__(
        self,
        model: nn.Module,
        policies: Sequence[Policy],
        optimizers: Sequence[Optimizer] = (),
        schedulers: Sequence[Any] = (),
        agree: Callable[[frozenset[str]], None] = lambda trainable: None,
        rebuild: Callable[[], bool] = lambda: False,
        discovery: Discovery | None = None,
    ) -> None:
        self.policies = list(policies)
        starts = [policy.next_start for policy in self.policies]
        self.context = Context(model, shared_stages(self.policies), discovery, starts)
        self.context.discovery.thaw = any(policy.thaw for policy in self.policies)
        self.index = self.context.index
        check_initialized(self.index, ", ".join(dict.fromkeys(policy.title for policy in self.policies)))
        self.bindings = [policy.bind(self.context) for policy in self.policies]
        self.before = {name: parameter.requires_grad for name, parameter in self.index.parameters.items()}
        required = frozenset(name for name, required in self.before.items() if required)
        self.can_train = required.union(*(binding.thaws for binding in self.bindings))
        self._thawed = self.can_train - required
        check_stages_train(self.policies, self.bindings, self.can_train, model)
        self.trainable = frozenset(self.before)  # as built; the first `reconcile` corrects it
        self.wants: list[Wants] = []
        self.progress = Progress()
        self._agree, self._rebuild = agree, rebuild
        self._order = {name: place for place, name in enumerate(self.index.parameters)}
        self._frozen_view = FrozenView(self.index, self.trainable)
        self._modules = HeldModules(self.index, self.policies)
        self._modules_of: tuple[frozenset[str], list[Wants]] | None = None
        self._sharded = [span.module for span in self.index.spans if is_sharded(span.module)]
        self._is_sharded = bool(self._sharded) or any(map(is_sharded_tensor, self.index.parameters.values()))
        check_dtypes(self.index, self._sharded, self.bindings)
        self._split(optimizers, schedulers)
        self.updates = Updates(self.optimizers, self.policies)
        for policy in self.policies:
            policy.load_state_of_run({})
            policy.snapshot = None

    def _split(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        for policy in self.policies:
            policy.check_optimizers(optimizers)
        words = _labels_by_policy(self.bindings)
        self.factors, options = _factors(self.bindings), merged_options(self.policies, self.bindings)
        self.labels = joined_labels(words)
        trains = frozenset[str]().union(*(binding.trains for binding in self.bindings)) & self.can_train
        join_homeless(optimizers, self.index, trains)
        self.optimizers = [
            SlottedOptimizer(optimizer, schedulers, self.index.name_of, self.labels, self.factors, words, options)
            for optimizer in optimizers
        ]

    @property
    def view(self) -> RunView:
        """A read-only view of the current run."""
        return RunView(
            self.index, tuple(self.policies), tuple(self.bindings), self.before, self.labels, self.progress,
            self.trainable, tuple(self.wants), self._modules.held, self._modules.modes_before, self._is_sharded,
            self._modules.branching, self.can_train, tuple(self.optimizers), tuple(self.context.discovery.remarks),
        )  # fmt: skip

    def reconcile(self, progress: Progress, *, modes: bool = True) -> Change:
        """Apply what the policies want at `progress`. A second call changes nothing.

        Args:
            progress: the progress of the run.
            modes: whether to put modules in eval mode too; Lightning warns of modules in eval mode before the start.

        Raises:
            PlanError: nothing would train.
        """
        wants = [policy.wants(progress) for policy in self.policies]
        self.progress = progress
        restored = self._restore(wants)
        trainable = self.trainable
        if wants != self.wants:
            trainable = self.can_train.difference(*(want.frozen for want in wants))
            self._check(trainable, wants)
            self._note_stage(wants)
        coming = trainable - self.trainable if self.wants else trainable & self._thawed
        unfrozen, frozen = self._in_order(coming), self._in_order(self.trainable - trainable)
        slots: tuple[str, ...] = ()
        reducer = False
        if unfrozen or frozen:
            self._agree(trainable)
            self._flag(unfrozen, frozen)
            reshard(self._sharded)
            self._frozen_view.move(unfrozen, frozen)
            slots = self._refill(unfrozen, frozen, wants)
            self.trainable = trainable
            reducer = self._rebuild()
        self.wants = wants
        held, released = self._update_modules() if modes else ((), ())
        done = Change(unfrozen, frozen, slots, reducer, held, released, restored)
        if done:
            for policy in self.policies:
                policy.changed(done)
        return done

    def _restore(self, wants: Sequence[Wants]) -> tuple[str, ...]:
        restored: tuple[str, ...] = ()
        for policy, want in zip(self.policies, wants, strict=True):
            if want.restore is not None:
                snapshot.restore(want.restore, self.index, self.optimizers)
                reshard(self._sharded)
                policy.restored()
                restored += (*want.restore["parameters"], *want.restore["buffers"])
        return restored

    def _note_stage(self, wants: Sequence[Wants]) -> None:
        """Start a stage if a policy releases parameters, even if another policy still freezes them."""
        if any(not old.frozen <= new.frozen for old, new in zip(self.wants, wants, strict=False)):
            for slotted in self.optimizers:
                slotted.begin_stage()

    def _in_order(self, names: frozenset[str]) -> tuple[str, ...]:
        if 8 * len(names) > len(self._order):
            return tuple([name for name in self._order if name in names])
        return tuple(sorted(names, key=self._order.__getitem__))

    def _check(self, trainable: frozenset[str], wants: Sequence[Wants]) -> None:
        if trainable or not self.index.parameters:
            return
        by = ", ".join(
            f"{policy.title} ({len(want.frozen)} of {len(self.before)})"
            for policy, want in zip(self.policies, wants, strict=True)
            if want.frozen
        )
        reason = f"frozen by {by}" if by else "no parameter required a gradient before the fit"
        raise PlanError(
            f"nothing would train in epoch {self.progress.epoch}, step {self.progress.step}: {reason}.\n"
            "  Leave at least one parameter that required a gradient before the fit unfrozen"
        )

    def _flag(self, unfrozen: Sequence[str], frozen: Sequence[str]) -> None:
        for name in frozen:
            parameter = self.index.parameters[name]
            parameter.requires_grad = False
            parameter.grad = None  # with zeros, momentum and decay would move it
        for name in unfrozen:
            self.index.parameters[name].requires_grad = True

    def _refill(self, unfrozen: Sequence[str], frozen: Sequence[str], wants: Sequence[Wants]) -> tuple[str, ...]:
        kept, moved, dropped = (
            set[str]().union(*(want.frozen for want in wants if want.optimizer_state == choice))
            for choice in PLACEMENTS
        )
        placement: dict[str, Placement] = {
            name: "keep" if name in kept else "cpu" if name in moved else "drop" if name in dropped else "keep"
            for name in frozen
        }
        if not self.wants:  # at the start, parameters frozen before the fit leave their group permanently
            placement.update({name: "drop" for name in self.before if name not in self.can_train})
        return tuple(slot.name for slotted in self.optimizers for slot in slotted.refill(unfrozen, placement))

    def _update_modules(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self._modules_of == (self.trainable, self.wants):
            return (), ()
        self._modules_of = (self.trainable, self.wants)
        return self._modules.update(self._frozen_view)

    def next_step(self) -> float:
        """The optimizer step within an epoch at which to reconcile next; infinity if there is none."""
        return min((policy.next_step(self.progress) for policy in self.policies), default=float("inf"))

    def validated(self, policy: Policy, metrics: Mapping[str, Any], epoch: int) -> None:
        """Pass the metrics of a validation to a policy.

        Raises:
            PlanError: its metric is missing.
        """
        policy.validated(metrics, epoch, self._take)

    def _take(self, frozen: Collection[str]) -> dict[str, Any]:
        """Take a snapshot of the parameters that may train while these are frozen, all buffers and optimizer state.

        It includes parameters that other policies freeze now, because they may unfreeze them before the restore.
        """
        names = [name for name in self.before if name in self.can_train and name not in frozen]
        return snapshot.take(self.index, frozenset(names), self.optimizers)

    def close(self) -> None:
        """Restore flags and modes. The optimizers keep their slots for later checkpoints."""
        self.updates.close()
        for name, required in self.before.items():
            self.index.parameters[name].requires_grad_(required)
            if not required:
                self.index.parameters[name].grad = None  # thawed parameters are frozen again
        self._modules.close()
        self._modules_of = None

    # ---- checkpoints

    def record(self) -> dict[str, Any]:
        """The state for a checkpoint, as plain types. With sharded parameters, this is a collective."""
        record = {
            "progress": [self.progress.epoch, self.progress.step, self.progress.total_steps],
            "trainable": sorted(self.trainable),
            "policies": [entry_of(policy) for policy in self.policies],
            "optimizers": [slotted.record() for slotted in self.optimizers],
            "discovered": self.context.discovery.record(),
        }
        return gathered(record)  # type: ignore[no-any-return]

    def load(self, record: Mapping[str, Any], *, modes: bool = True) -> Change:
        """Restore the state of a record. Called before the optimizers load their own state.

        Raises:
            ResumeError: other stages, slots or trainable parameters; the message shows both sides.
        """
        load_entries(self.policies, record["policies"])
        change = self.reconcile(Progress(*record["progress"]), modes=modes)
        if difference := sorted(self.trainable ^ set(record["trainable"])):
            name = difference[0]
            here, there = ("trains", "frozen") if name in self.trainable else ("is frozen", "trained")
            raise ResumeError(
                f"'{name}' ({len(difference)} parameters in all) {here} at epoch {self.progress.epoch}, step "
                f"{self.progress.step} with these callbacks, and was {there} when the checkpoint was written "
                f"({len(record['trainable'])} trainable then, {len(self.trainable)} now).\n"
                "  Resume with the callbacks and schedule that wrote the checkpoint"
            )
        if len(self.optimizers) != len(record["optimizers"]):
            raise ResumeError(
                f"the checkpoint holds {len(record['optimizers'])} optimizers, this run has {len(self.optimizers)}.\n"
                "  Resume with the configure_optimizers that wrote the checkpoint, or start a new run from its weights "
                "only"
            )
        for place, (slotted, entry) in enumerate(zip(self.optimizers, record["optimizers"], strict=True)):
            slotted.check_record(entry, f"optimizer {place}")
            slotted.load_record(entry)
        return change


def _labels_by_policy(bindings: Sequence[Binding]) -> dict[str, tuple[str, ...]]:
    """Parameter -> its label in each policy, "" for none. Two policies may use one label for different stages."""
    names = dict.fromkeys(name for binding in bindings for name in binding.labels)
    return {name: tuple(binding.labels.get(name, "") for binding in bindings) for name in names}


def _factors(bindings: Sequence[Binding]) -> dict[str, float]:
    factors: dict[str, float] = {}
    for binding in bindings:
        for name, factor in binding.factors.items():
            factors[name] = factors.get(name, 1.0) * factor
    own: dict[str, float] = {}
    for binding in bindings:
        for name, factor in binding.own_factors.items():
            if own.setdefault(name, factor) != factor:
                raise PlanError(
                    f"two stages give '{name}' a factor of their own, {own[name]:g} and {factor:g}.\n"
                    "  Give one of them no factor, or both the same"
                )
    return factors | own
