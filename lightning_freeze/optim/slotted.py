"""Keep optimizer groups in constant slots, so that schedulers never see a group added or removed.

Each of the user's groups is split once, at the start of a fit, into slots: one for each of its stages and rate
factors. The number and order of slots stay constant for the whole fit. Freezing empties the `params` of a slot,
unfreezing fills them again. The per-group lists of schedulers (`base_lrs`, ...) are re-indexed at the split.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_map_only

from lightning_freeze.errors import OptimizerError, ResumeError
from lightning_freeze.model.dtensors import cut_like
from lightning_freeze.optim.group_options import RATES, changed
from lightning_freeze.optim.scheduler_lists import check_lists, reindex, scaled, schedulers_of
from lightning_freeze.optim.slots import Occupancy, Placement, Slot, name_slots
from lightning_freeze.optim.state import (
    COUNTERS,
    Aside,
    aside_record,
    fresh_optimizer,
    from_host,
    set_counters,
    to_host,
)

_SLOTTED = "_lightning_freeze_slotted"  # attribute of the optimizer: what split it last


class SlottedOptimizer:
    """An optimizer whose groups have been split into slots.

    Args:
        optimizer: any optimizer that supports parameter groups. It is modified in place.
        schedulers: the schedulers of the run; those of other optimizers are ignored.
        name_of: parameter -> its name in the model; None if the model does not have it.
        labels: parameter name -> name of its stage.
        factors: parameter name -> factor of the rate.
        kinds: parameter name -> any hashable; parameters of different kinds never share a slot.
        options: parameter name -> option -> value; a value that the group already has splits nothing.

    Raises:
        OptimizerError: the optimizer supports one group only, has no rate or was split by an earlier fit, or a
            scheduler's per-group list has another length.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[Any],
        name_of: Callable[[Tensor], str | None],
        labels: Mapping[str, str],
        factors: Mapping[str, float],
        kinds: Mapping[str, Hashable] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if isinstance(optimizer, LBFGS):
            raise OptimizerError(
                "LBFGS takes a single parameter group, so stages and rates per layer are not possible with it.\n"
                "  Use another optimizer, or remove the lightning_freeze callbacks"
            )
        if any(group.get("lr") is None for group in optimizer.param_groups):
            raise OptimizerError(
                f"{type(optimizer).__name__} has no learning rate in its groups (lr=None): there is none to scale, "
                "ramp or show.\n  Give it one, for example Adafactor(..., lr=1e-3, relative_step=False)"
            )
        earlier: SlottedOptimizer | None = vars(optimizer).get(_SLOTTED)
        if earlier is not None and any(slot.factor != 1 or slot.options for slot in earlier.slots):
            raise OptimizerError(
                f"configure_optimizers returned the {type(optimizer).__name__} of an earlier fit, whose rates or "
                "options are set per layer already.\n  Make a new optimizer in configure_optimizers"
            )
        self.optimizer = optimizer
        self.steps = 0  # optimizer steps so far; counted by a StepShaper, where there is one
        self.slots: list[Slot] = []
        self.parameters: dict[str, nn.Parameter] = {}
        self._aside: dict[str, Aside] = {}
        self._fills_at_construction = bool(optimizer.state)  # Adagrad: step() expects the state to be there
        self._given_names: dict[str, str] = {}
        self._split(schedulers, name_of, labels, factors, kinds or {}, options or {})
        named = [self._members(slot.names, bool(self._given_names)) for slot in self.slots]
        self._present = Occupancy(self.slots, named)
        for name in self.parameters:  # those that joined were not there at construction
            self._fill(name)
        vars(optimizer)[_SLOTTED] = self

    # ---- the split, once

    def _split(
        self,
        schedulers: Sequence[Any],
        name_of: Callable[[Tensor], str | None],
        labels: Mapping[str, str],
        factors: Mapping[str, float],
        kinds: Mapping[str, Hashable],
        options: Mapping[str, Mapping[str, Any]],
    ) -> None:
        old = list(self.optimizer.param_groups)
        new: list[dict[str, Any]] = []
        for origin, group in enumerate(old):
            own = {name: fresh for name, wanted in options.items() if (fresh := changed(group, wanted))}
            apart = {**kinds, **{name: (kinds.get(name), repr(fresh)) for name, fresh in own.items()}}
            for (label, factor, _), names in self._parts(origin, group, name_of, labels, factors, apart).items():
                mine = own.get(names[0], {}) if names else {}
                self.slots.append(Slot("", label, factor, origin, names, options=mine))
                new.append(self._group(group, factor, names) | mine)
        listed = schedulers_of(self.optimizer, schedulers)
        check_lists(listed, len(old))
        if len(new) > len(old) or any(slot.label for slot in self.slots):
            name_slots(self.slots, [group.get("name") for group in old])
            for slot, group in zip(self.slots, new, strict=True):
                group["name"] = slot.name
        else:
            for slot in self.slots:
                slot.name = str(old[slot.origin].get("name", f"group {slot.origin}"))
        self.optimizer.param_groups[:] = new  # in place: wrappers of the optimizer hold on to this list
        reindex(listed, [slot.origin for slot in self.slots], [slot.factor for slot in self.slots])

    def _parts(
        self,
        origin: int,
        group: Mapping[str, Any],
        name_of: Callable[[Tensor], str | None],
        labels: Mapping[str, str],
        factors: Mapping[str, float],
        kinds: Mapping[str, Hashable],
    ) -> dict[tuple[str, float, Hashable], list[str]]:
        parts: dict[tuple[str, float, Hashable], list[str]] = {}
        for place, parameter in enumerate(group["params"]):
            name = name_of(parameter)
            if name is None:
                name = f"parameter {place} of group {origin}, not of the model"
            self.parameters[name] = parameter
            if "param_names" in group:
                self._given_names[name] = group["param_names"][place]
            part = labels.get(name, ""), factors.get(name, 1.0), kinds.get(name)
            parts.setdefault(part, []).append(name)
        return parts or {("", 1.0, None): []}

    def _group(self, group: Mapping[str, Any], factor: float, names: Sequence[str]) -> dict[str, Any]:
        copied = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
        copied.update({key: scaled(copied[key], factor) for key in RATES if copied.get(key) is not None})
        return {"params": [], **copied} | self._members(names, "param_names" in group)

    def _members(self, names: Sequence[str], named: bool) -> dict[str, Any]:
        members: dict[str, Any] = {"params": [self.parameters[name] for name in names]}
        return members | ({"param_names": [self._given_names[name] for name in names]} if named else {})

    def holds(self, name: str) -> bool:
        """Whether a parameter is currently in its slot."""
        return name in self._present

    # ---- filling and emptying, at every change

    def begin_stage(self) -> None:
        """Record that parameters are unfrozen, in this optimizer or in another one of the run."""
        for slot in self.slots:
            slot.stage, slot.stage_since = slot.stage + 1, self.steps

    def refill(self, coming: Collection[str], leaving: Mapping[str, Placement]) -> list[Slot]:
        """Move parameters into and out of their slots, and return the changed slots.

        Args:
            coming: names of parameters that begin to train.
            leaving: names of parameters that stop training -> what to do with their state.
        """
        # in the order given, alike on all ranks: torch goes through `optimizer.state` in its order to gather it
        out, into = self._present.known(leaving), self._present.known(coming)
        if self.optimizer.state:
            for name in out:
                self._set_aside(name, leaving[name])
        touched = sorted(self._present.set(out, False) | self._present.set(into, True))
        for place in touched:
            slot, group = self.slots[place], self.optimizer.param_groups[place]
            if not group["params"]:
                slot.since = self.steps
                set_counters(group, slot.counters)
            group.update(self._present.lists(place))
            if not group["params"]:
                slot.counters = {key: copy.deepcopy(group[key]) for key in COUNTERS if key in group}
        if self._aside or self._fills_at_construction:
            for name in into:
                self._bring_back(name)
        return [self.slots[place] for place in touched]

    def _set_aside(self, name: str, placement: Placement) -> None:
        state = self.optimizer.state.pop(self.parameters[name], None)
        if state and placement != "drop":
            self._aside[name] = (state, None) if placement == "keep" else to_host(state)

    def _bring_back(self, name: str) -> None:
        parameter = self.parameters[name]
        if (entry := self._aside.pop(name, None)) is not None:
            self.optimizer.state[parameter] = from_host(*entry, parameter.device)
        else:
            self._fill(name)

    def _fill(self, name: str) -> None:
        """Give a parameter the state that the optimizer creates at construction and expects in every step."""
        parameter = self.parameters[name]
        if self._fills_at_construction and parameter not in self.optimizer.state:
            fresh = fresh_optimizer(self.optimizer, parameter)
            if fresh is not None and fresh.state:
                self.optimizer.state[parameter] = fresh.state[parameter]

    def state_of(self, name: str) -> dict[str, Any] | None:
        """The optimizer's state of a parameter, even if it is set aside; None if there is none."""
        aside = self._aside.get(name)
        return self.optimizer.state.get(self.parameters[name]) if aside is None else aside[0]

    def set_state(self, name: str, state: dict[str, Any] | None) -> None:
        """Replace the state of a parameter; the state of a frozen parameter only if it is kept."""
        aside = self._aside.pop(name, None)
        if name in self._present:
            self.optimizer.state.pop(self.parameters[name], None)
            if state is not None:
                self.optimizer.state[self.parameters[name]] = state
            self._fill(name)
        elif aside is not None and state is not None:
            self._aside[name] = (state, None) if aside[1] is None else to_host(state)

    # ---- checkpoints

    @contextmanager
    def no_empty_slots(self) -> Iterator[None]:
        """Fill empty slots with their frozen parameters: torch's distributed state dicts refuse empty groups."""
        steps = self.steps
        empty = self.fill_empty_slots()
        try:
            yield
        finally:
            self._enter(empty, lambda place: [])  # by place: loading makes a new list of groups
            self.steps = steps  # torch steps an optimizer that has no state yet, with zeros, to see what it is like

    def fill_empty_slots(self) -> list[int]:
        """Fill empty slots permanently, after the last step, and return their places."""
        empty = [place for place, group in enumerate(self.optimizer.param_groups) if not group["params"]]
        self._enter(empty, lambda place: self.slots[place].names)
        return empty

    def _enter(self, places: Sequence[int], names: Callable[[int], Sequence[str]]) -> None:
        for place in places:
            group = self.optimizer.param_groups[place]
            group.update(self._members(names(place), "param_names" in group))

    def record(self) -> dict[str, Any]:
        """What a checkpoint needs in addition to the optimizer's state_dict, as plain types and tensors."""
        return {
            "slots": [
                {
                    "name": slot.name,
                    "names": list(slot.names),
                    "since": slot.since,
                    "counters": slot.counters,
                    "stage": [slot.stage, slot.stage_since],
                }
                for slot in self.slots
            ],
            "aside": {name: aside_record(*self._aside[name]) for name in sorted(self._aside)},  # alike on all ranks
            "steps": self.steps,
        }

    def check_record(self, record: Mapping[str, Any], which: str) -> None:
        """Refuse the record of an optimizer that was split differently.

        Raises:
            ResumeError: the slots differ in number, name or members; the message shows both.
        """
        saved = [(entry["name"], list(entry["names"])) for entry in record["slots"]]
        mine = [(slot.name, slot.names) for slot in self.slots]
        if saved != mine:
            raise ResumeError(
                f"the groups of {which} ({type(self.optimizer).__name__}) are not those of the checkpoint.\n"
                f"  Checkpoint: {_summary(saved)}\n  This run:   {_summary(mine)}\n"
                "  Resume with the callbacks, model and optimizer that wrote the checkpoint, or start a new run "
                "from its weights only"
            )

    def load_record(self, record: Mapping[str, Any]) -> None:
        """Load the record of a checkpoint. The optimizer's own state_dict is loaded separately."""
        self._aside = {}
        for name, entry in record["aside"].items():
            parameter = self.parameters[name]
            state = tree_map_only(Tensor, partial(cut_like, parameter=parameter), entry["state"])
            devices = entry["devices"]
            on_device = from_host(state, devices, parameter.device), None
            self._aside[name] = (to_host(state)[0], devices) if entry["on_host"] else on_device
        self.steps = int(record["steps"])
        for slot, entry in zip(self.slots, record["slots"], strict=True):
            slot.since = int(entry["since"])
            slot.stage, slot.stage_since = entry.get("stage", (0, 0))
            slot.counters = entry.get("counters")


def make_whole(optimizer: Optimizer) -> None:
    """Put parameters back that an earlier fit with the same optimizer left frozen."""
    earlier: SlottedOptimizer | None = vars(optimizer).get(_SLOTTED)
    if earlier is not None:
        earlier.refill([name for slot in earlier.slots for name in slot.names if not earlier.holds(name)], {})


def _summary(slots: Sequence[tuple[str, list[str]]]) -> str:
    return ", ".join(f"{name} ({len(names)} parameters)" for name, names in slots)
