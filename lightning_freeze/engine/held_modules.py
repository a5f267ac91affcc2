"""Keep modules in eval mode during a run, and let some of them save no input for the backward pass.

A module whose own forward branches on `self.training` is never held: it may compute its losses in train mode only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_freeze.engine.lean_norm import make_lean, make_plain
from lightning_freeze.engine.modes import hold, is_held, release
from lightning_freeze.engine.policy import Policy
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.model.index import ModelIndex, Place
from lightning_freeze.model.training_flag import needs_train_mode


class HeldModules:
    """The modules of a model that its policies hold in eval mode.

    Args:
        index: the model.
        policies: a module is held if any policy holds it.

    Attributes:
        held: the modules in eval mode.
        branching: modules that are not held although a policy asks for it, because their forward branches.
        modes_before: module -> whether it was in train mode before it was first held.
    """

    def __init__(self, index: ModelIndex, policies: Sequence[Policy]) -> None:
        self._index = index
        self._policies = policies
        self.held: frozenset[Place] = frozenset()
        self.branching: frozenset[Place] = frozenset()
        self._branches: dict[Place, bool] = {}
        self.modes_before: dict[Place, bool] = {}
        self._lean: frozenset[Place] = frozenset()
        # `freeze` of a plain loop holds these; only `unfreeze` releases them
        self._held_before = frozenset(place for place, span in index.places if is_held(span.module))
        self._first = _first_places(index)

    def update(self, view: FrozenView) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Hold the modules that policies ask for now. Returns the names of newly held and released modules."""
        wanted = self._merged(policy.holds(view) for policy in self._policies)
        self.branching = frozenset(place for place in wanted if self._branches_on_flag(place))
        wanted -= self.branching
        released, fresh = sorted(self.held - wanted - self._held_before), sorted(wanted - self.held)
        spans = self._index.spans
        for place in released:
            release(spans[place].module)
        for place in fresh:
            self.modes_before.setdefault(place, spans[place].module.training)
            hold(spans[place].module)
        self.held = wanted
        self._make_lean(self._merged(policy.lean(view) for policy in self._policies) & wanted)
        return tuple([spans[place].name for place in fresh]), tuple([spans[place].name for place in released])

    def _branches_on_flag(self, place: Place) -> bool:
        if place not in self._branches:
            self._branches[place] = needs_train_mode(self._index.spans[place].module)
        return self._branches[place]

    def _merged(self, answers: Iterable[set[Place]]) -> frozenset[Place]:
        places = set[Place]().union(*answers)
        return frozenset(self._first.get(place, place) for place in places) if self._first else frozenset(places)

    def _make_lean(self, wanted: frozenset[Place]) -> None:
        for place in self._lean - wanted:
            make_plain(self._index.spans[place].module)
        for place in wanted - self._lean:
            make_lean(self._index.spans[place].module)
        self._lean = wanted

    def close(self) -> None:
        """Restore the mode and class of every module."""
        self._make_lean(frozenset())
        for place in self.held - self._held_before:
            release(self._index.spans[place].module)
        self.held = frozenset()
        for place, training in self.modes_before.items():
            self._index.spans[place].module.training = training
        self.modes_before = {}


def _first_places(index: ModelIndex) -> dict[Place, Place]:
    """For modules that are registered several times: each later place -> the first place."""
    first: dict[int, Place] = {}
    places = [(place, first.setdefault(id(span.module), place)) for place, span in index.places]
    return {place: original for place, original in places if place != original}
