"""The only place that mutates: what all policies want is merged, and model, optimizers and modes are made so.

`Reconciler` needs no Trainer: it serves a plain training loop, the preview, and the callbacks alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_freeze.engine import snapshot
from lightning_freeze.engine.context import Context, Discovered
from lightning_freeze.engine.lean_norm import make_lean, make_plain
from lightning_freeze.engine.modes import hold, is_held, release
from lightning_freeze.engine.policy import Binding, Change, Policy, Wants, shared_stages
from lightning_freeze.errors import PlanError, ResumeError
from lightning_freeze.model.dtensors import gathered, is_sharded, is_sharded_tensor, reshard
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.model.index import ModelIndex, check_initialized
from lightning_freeze.optim.joining import home_of, join
from lightning_freeze.optim.slots import PLACEMENTS, Placement, Slot
from lightning_freeze.optim.slotted import SlottedOptimizer, make_whole
from lightning_freeze.optim.step_shaper import StepShaper
from lightning_freeze.schedule.moments import Progress


class Reconciler:
    """A model with its optimizers under a list of policies, for one fit.

    Args:
        model: the module whose parameters are frozen.
        policies: their order does not matter.
        optimizers: built with everything trainable in them; split into slots here.
        schedulers: the LR schedulers of these optimizers.
        agree: called with the new trainable set before anything changes; raises when ranks differ.
        rebuild: called after a change of the trainable set; builds a DDP wrapper anew and says whether it did.
        discovered: stages that have been discovered in this model before.

    Raises:
        FreezeError: names, arguments, optimizers or schedulers that cannot work; nothing has changed then.
    """

    def __init__(
        self,
        model: nn.Module,
        policies: Sequence[Policy],
        optimizers: Sequence[Optimizer] = (),
        schedulers: Sequence[Any] = (),
        agree: Callable[[frozenset[str]], None] = lambda trainable: None,
        rebuild: Callable[[], bool] = lambda: False,
        discovered: Discovered | None = None,
    ) -> None:
        self.policies = list(policies)
        self.context = Context(model, shared_stages(self.policies), discovered)
        self.index = self.context.index
        check_initialized(self.index, ", ".join(dict.fromkeys(policy.title for policy in self.policies)))
        self.bindings = [policy.bind(self.context) for policy in self.policies]
        self.before = {name: parameter.requires_grad for name, parameter in self.index.parameters.items()}
        self._all_trainable = frozenset(name for name, required in self.before.items() if required)
        self.trainable = frozenset(self.before)  # as the optimizers were built; the first call corrects it
        self._order = {name: place for place, name in enumerate(self.index.parameters)}
        self._view = FrozenView(self.index, self.trainable)
        self._twins = _twins(self.index)
        self._sharded = [span.module for span in self.index.spans if is_sharded(span.module)]
        self.held: frozenset[int] = frozenset()
        # by `freeze` of a plain loop: only `unfreeze` lets them go
        self._held_before = frozenset(place for place, span in enumerate(self.index.spans) if is_held(span.module))
        self._lean: frozenset[int] = frozenset()
        self._modes_before: dict[int, bool] = {}
        self.wants: list[Wants] = []
        self.progress = Progress()
        self._modes_of: tuple[frozenset[str], list[Wants]] | None = None
        self._agree, self._rebuild = agree, rebuild
        for policy in self.policies:
            policy.check_optimizers(optimizers)
        said, self.factors = _said(self.bindings), _factors(self.bindings)
        self.labels = {name: "+".join(sorted(set(filter(None, labels)))) for name, labels in said.items()}
        self._join(optimizers)
        self.optimizers = [
            SlottedOptimizer(optimizer, schedulers, self.index.name_of, self.labels, self.factors, said)
            for optimizer in optimizers
        ]
        self._idling = [policy for policy in self.policies if policy.idles]
        self._shaping = [policy for policy in self.policies if policy.shapes_steps]
        shaped = self.optimizers if self._idling or self._shaping else []
        self._shapers = [StepShaper(slotted, self._drop_idle, self._observe, self._step_factors) for slotted in shaped]
        for policy in self.policies:
            policy.load_state_of_run({})

    def _join(self, optimizers: Sequence[Optimizer]) -> None:
        if not optimizers:
            return
        for optimizer in optimizers:
            make_whole(optimizer)
        homes = {
            name: (place, group)
            for place, optimizer in enumerate(optimizers)
            for group, options in enumerate(optimizer.param_groups)
            for parameter in options["params"]
            if (name := self.index.name_of(parameter)) is not None
        }
        trains = frozenset[str]().union(*(binding.trains for binding in self.bindings)) & self._all_trainable
        ndims = {name: parameter.dim() for name, parameter in self.index.parameters.items()}
        homeless = [name for name in self.index.parameters if name in trains and name not in homes]
        for name, (place, group) in [(name, home_of(name, homes, ndims)) for name in homeless]:
            join(optimizers[place], name, self.index.parameters[name], group)

    def _observe(self, slotted: SlottedOptimizer) -> None:
        for policy in self._shaping:
            policy.observe(slotted.optimizer, slotted.slots, slotted.steps)

    def _step_factors(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> list[Any]:
        product: list[Any] = [1.0] * len(slots)
        for policy in self._shaping:
            factors = policy.step_factors(optimizer, slots, steps)
            if factors is not None:
                product = [one * other for one, other in zip(product, factors, strict=True)]
        return product

    def before_update(self, optimizer: Optimizer) -> None:
        """Take away what must not be used of the gradients now: right before the update is too late to clip them."""
        if self._idling:
            for slotted in self.optimizers:
                if slotted.optimizer is optimizer:
                    self._drop_idle(slotted)

    def _drop_idle(self, slotted: SlottedOptimizer) -> None:
        for policy in self._idling:
            for name in policy.idle(slotted.optimizer):
                if (parameter := slotted.parameters.get(name)) is not None:  # another optimizer's may be collecting
                    parameter.grad = None

    def reconcile(self, progress: Progress, *, modes: bool = True) -> Change:
        """Make everything as the policies want it at `progress`. A second call changes nothing.

        Args:
            progress: where the run is.
            modes: whether to put modules in eval mode as well; Lightning warns of any that is so before the start.

        Raises:
            PlanError: nothing would train.
        """
        wants = [policy.wants(progress) for policy in self.policies]
        self.progress = progress
        restored: tuple[str, ...] = ()
        for policy, want in zip(self.policies, wants, strict=True):
            if want.restore is not None:
                snapshot.bring_back(want.restore, self.index, self.optimizers)
                reshard(self._sharded)
                policy.restored()
                restored += (*want.restore["parameters"], *want.restore["buffers"])
        trainable = self.trainable
        if wants != self.wants:
            trainable = self._all_trainable.difference(*(want.frozen for want in wants))
            self._check(trainable, wants)
        unfrozen, frozen = self._in_order(trainable - self.trainable), self._in_order(self.trainable - trainable)
        slots: tuple[str, ...] = ()
        reducer = False
        if unfrozen or frozen:
            self._agree(trainable)
            self._flag(unfrozen, frozen)
            reshard(self._sharded)
            self._view.move(unfrozen, frozen)
            slots = self._refill(unfrozen, frozen, wants)
            self.trainable = trainable
            reducer = self._rebuild()
        self.wants = wants
        held, released = self._modes() if modes else ((), ())
        done = Change(unfrozen, frozen, slots, reducer, held, released, restored)
        if done:
            for policy in self.policies:
                policy.changed(done)
        return done

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
            parameter.grad = None  # with a zero left in place, momentum and weight decay would go on moving it
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
        if not self.wants:  # at first, what was frozen before the fit leaves its group for good
            placement.update({name: "drop" for name, required in self.before.items() if not required})
        return tuple(slot.name for slotted in self.optimizers for slot in slotted.refill(unfrozen, placement))

    def _modes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self._modes_of == (self.trainable, self.wants):
            return (), ()
        self._modes_of = (self.trainable, self.wants)
        places = set[int]().union(*(policy.holds(self._view) for policy in self.policies))
        wanted = frozenset(self._twins.get(place, place) for place in places) if self._twins else frozenset(places)
        released, fresh = sorted(self.held - wanted - self._held_before), sorted(wanted - self.held)
        spans = self.index.spans
        for place in released:
            release(spans[place].module)
        for place in fresh:
            self._modes_before.setdefault(place, spans[place].module.training)
            hold(spans[place].module)
        self.held = wanted
        lean = set[int]().union(*(policy.lean(self._view) for policy in self.policies))
        self._make_lean(frozenset(self._twins.get(place, place) for place in lean) & wanted)
        return tuple([spans[place].name for place in fresh]), tuple([spans[place].name for place in released])

    @property
    def is_sharded(self) -> bool:
        """Whether ranks hold parts of the parameters, so that bits differ among them."""
        sharded = any(is_sharded_tensor(parameter) for parameter in self.index.parameters.values())
        return sharded or bool(self._sharded)

    def rates(self) -> list[list[float]]:
        """The learning rate of each slot of each optimizer in the step that comes next, warm-up included."""
        found = []
        for slotted in self.optimizers:
            rates = [group["lr"] for group in slotted.optimizer.param_groups]
            if self._shapers:
                factors = self._step_factors(slotted.optimizer, slotted.slots, slotted.steps)
                rates = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
            found.append([float(rate) for rate in rates])
        return found

    def rates_used(self) -> list[list[float]]:
        """The learning rate of each slot of each optimizer in its last step, where a policy shapes steps."""
        plain = [[group["lr"] for group in slotted.optimizer.param_groups] for slotted in self.optimizers]
        used = [shaper.used for shaper in self._shapers] or plain
        return [[float(rate) for rate in last or rates] for last, rates in zip(used, plain, strict=True)]

    def _make_lean(self, wanted: frozenset[int]) -> None:
        for place in self._lean - wanted:
            make_plain(self.index.spans[place].module)
        for place in wanted - self._lean:
            make_lean(self.index.spans[place].module)
        self._lean = wanted

    def training_before(self, place: int) -> bool:
        """The mode of a module before it was first held: a place in `index.spans`."""
        return self._modes_before.get(place, self.index.spans[place].module.training)

    def next_step(self) -> float:
        """The optimizer step at which to reconcile next, if it lies within an epoch."""
        return min((policy.next_step(self.progress) for policy in self.policies), default=float("inf"))

    def close(self) -> None:
        """Put flags and modes back to what they were before. The optimizers keep their slots, for later checkpoints."""
        for shaper in self._shapers:
            shaper.close()
        for name, required in self.before.items():
            self.index.parameters[name].requires_grad_(required)
        self._make_lean(frozenset())
        for place in self.held - self._held_before:
            release(self.index.spans[place].module)
        self.held = frozenset()
        self._modes_of = None
        for place, training in self._modes_before.items():
            self.index.spans[place].module.training = training
        self._modes_before = {}

    # ---- checkpoints

    def record(self) -> dict[str, Any]:
        """All that a checkpoint needs to resume here, in plain types; a collective where ranks hold parts."""
        record = {
            "progress": [self.progress.epoch, self.progress.step, self.progress.total_steps],
            "trainable": sorted(self.trainable),
            "policies": [
                {"class": policy.title, "signature": policy.signature, "state": policy.state_of_run()}
                for policy in self.policies
            ],
            "optimizers": [slotted.record() for slotted in self.optimizers],
        }
        return gathered(record)  # type: ignore[no-any-return]

    def load(self, record: Mapping[str, Any], *, modes: bool = True) -> Change:
        """Be as the run was when `record` was made, before the optimizers load their own state.

        Raises:
            ResumeError: other stages, slots or trainable parameters; the message shows both sides.
        """
        for policy, state in _matched(self.policies, record["policies"]):
            policy.load_state_of_run(state)
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
                f"the checkpoint holds {len(record['optimizers'])} optimizers, this run has {len(self.optimizers)}"
            )
        for place, (slotted, entry) in enumerate(zip(self.optimizers, record["optimizers"], strict=True)):
            slotted.check_record(entry, f"optimizer {place}")
            slotted.load_record(entry)
        return change


def _twins(index: ModelIndex) -> dict[int, int]:
    """Places of modules that are registered several times -> the first place of the same module."""
    first: dict[int, int] = {}
    places = [(place, first.setdefault(id(span.module), place)) for place, span in enumerate(index.spans)]
    return {place: original for place, original in places if place != original}


def _said(bindings: Sequence[Binding]) -> dict[str, tuple[str, ...]]:
    """What each policy calls each parameter, "" where it does not: two may mean different things by one word."""
    names = dict.fromkeys(name for binding in bindings for name in binding.labels)
    return {name: tuple(binding.labels.get(name, "") for binding in bindings) for name in names}


def _factors(bindings: Sequence[Binding]) -> dict[str, float]:
    factors: dict[str, float] = {}
    for binding in bindings:
        for name, factor in binding.factors.items():
            factors[name] = factors.get(name, 1.0) * factor
    return factors


def _matched(policies: Sequence[Policy], saved: Sequence[Mapping[str, Any]]) -> list[tuple[Policy, dict[str, Any]]]:
    """Each policy with its state: by class and signature, so that their order in the list does not matter."""
    left = list(saved)
    matched = []
    for policy in policies:
        same = [entry for entry in left if entry["class"] == policy.title]
        fitting = next((entry for entry in same if entry["signature"] == policy.signature), None)
        if fitting is None and policy.signature is not None:
            found = "\n              ".join(_show(entry["signature"]) for entry in same) or "none"
            raise ResumeError(
                f"the checkpoint does not fit {policy.title}.\n  Checkpoint: {found}\n"
                f"  This run:   {_show(policy.signature)}\n"
                "  Resume with the callbacks that wrote the checkpoint, or start a new run from its weights only"
            )
        if fitting is not None:
            left = [entry for entry in left if entry is not fitting]
        matched.append((policy, dict(fitting["state"]) if fitting else {}))
    return matched


def _show(signature: Any) -> str:
    return ", ".join(f"{name} {patterns}" for name, patterns in signature) if signature else "nothing"
