"""Find the frozen modules for a set of trainable parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import accumulate

from lightning_freeze.model.index import ModelIndex, Place


class FrozenView:
    """The frozen modules of a model. A module is a range of the pre-order, so two prefix sums answer each question.

    Modules are given as places in `index.spans`. One view is updated from one trainable set to the next.
    """

    def __init__(self, index: ModelIndex, trainable: Collection[str]) -> None:
        self.index = index
        self._places: dict[str, list[int]] = {}
        for place, name in enumerate(index.entries):
            self._places.setdefault(name, []).append(place)
        self._flags = bytearray(name in trainable for name in index.entries)
        self._ranges = [(place, span.start, span.stop) for place, span in index.places if span.stop > span.start]
        self._gaps = self._between_owners()
        self._frozen: list[tuple[Place, int, int]] | None = None

    def move(self, unfrozen: Iterable[str], frozen: Iterable[str]) -> None:
        """Update the view: these parameters began to train, those stopped."""
        for names, flag in ((unfrozen, 1), (frozen, 0)):
            for name in names:
                for place in self._places[name]:
                    self._flags[place] = flag
        self._frozen = None

    def _ranges_frozen(self) -> list[tuple[Place, int, int]]:
        """The modules whose parameters are all frozen, with their ranges."""
        if self._frozen is None:
            sums = list(accumulate(self._flags, initial=0))
            self._frozen = [(place, start, stop) for place, start, stop in self._ranges if sums[start] == sums[stop]]
        return self._frozen

    def frozen(self, places: Collection[Place]) -> set[Place]:
        """Those of the modules that are frozen; a module without parameters follows the module that contains it."""
        return set(places) & self._with_subtrees([place for place, _, _ in self._ranges_frozen()])

    def train_nothing(self, places: Collection[Place]) -> set[Place]:
        """Those of the modules that have no trainable parameter, including modules without parameters."""
        spans = self.index.spans
        return {place for place in places if not any(self._flags[spans[place].start : spans[place].stop])}

    def frozen_modules(self, mine: Collection[str]) -> set[Place]:
        """The modules to run in eval mode because the parameters `mine` are frozen.

        These are modules whose parameters are all frozen, at least one of them in `mine`, with everything under them;
        and modules without parameters (Dropout) between two such modules in registration order.
        """
        sums = list(accumulate([name in mine for name in self.index.entries], initial=0))
        inside = self._with_subtrees(
            [place for place, start, stop in self._ranges_frozen() if sums[stop] > sums[start]]
        )
        inside.update([place for place, before, after in self._gaps if before in inside and after in inside])
        return inside

    def _with_subtrees(self, places: Iterable[Place]) -> set[Place]:
        """These places and all places under them, in ascending order."""
        found: set[Place] = set()
        done = 0
        for place in places:
            if place >= done:
                done = self.index.spans[place].end
                found.update(map(Place, range(place, done)))
        return found

    def _between_owners(self) -> list[tuple[Place, int, int]]:
        """Yield each module without parameters, with the owners of the parameters before and after it."""
        owner: dict[int, Place] = {}
        for place, span in self.index.places:
            own = sum(parameter is not None for parameter in span.module._parameters.values())
            owner.update((entry, place) for entry in range(span.start, span.start + own))
        gaps: list[tuple[Place, int, int]] = []
        for place, span in self.index.places:
            if span.start == span.stop and span.start in owner:
                before = span.start - 1
                while before >= 0 and self.index.spans[owner[before]].end > place:  # a position, of a module around it
                    before -= 1
                if before >= 0:
                    gaps.append((place, owner[before], owner[span.start]))
        return gaps
