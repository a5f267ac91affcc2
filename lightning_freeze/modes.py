"""Eval mode that stays: BatchNorm statistics are held and Dropout is off while a module is held.

`requires_grad=False` stops neither, and `.train()`, called by anyone at any time, would undo a plain
`.eval()`. A held module therefore answers `train()` with eval mode itself, at no cost per step: its `train`
is shadowed on the instance, by a `functools.partial` of a function of this file, so that a held module can
still be copied and pickled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from itertools import accumulate

from torch import nn

from lightning_freeze.selection import ModelIndex

_BEFORE = "_lightning_freeze_training"


def _held_train(module: nn.Module, mode: bool = True) -> nn.Module:
    """What `train` does on a held module: children decide for themselves, the module stays in eval mode."""
    if mode:
        module.__dict__[_BEFORE] = True
    module.training = False
    for child in module.children():
        child.train(mode)
    return module


def hold(module: nn.Module) -> None:
    """Put one module (not those under it) in eval mode and keep it there until `release`."""
    if _BEFORE not in module.__dict__:
        module.__dict__[_BEFORE] = module.training
        module.__dict__["train"] = partial(_held_train, module)
        _set_training(module, False)


def release(module: nn.Module) -> None:
    """Give a held module its mode back: the one before `hold`, or train mode if `train()` was called since."""
    if _BEFORE in module.__dict__:
        del module.__dict__["train"]
        _set_training(module, module.__dict__.pop(_BEFORE))


def _set_training(module: nn.Module, training: bool) -> None:
    if type(module).__setattr__ is nn.Module.__setattr__:
        module.__dict__["training"] = training  # the same, without the search for parameters: 16 us less a module
    else:
        module.training = training


def is_held(module: nn.Module) -> bool:
    """Whether `hold` keeps the module in eval mode."""
    return _BEFORE in module.__dict__


class FrozenView:
    """Which modules are frozen: a module is a range of the pre-order, so two prefix sums tell.

    Modules are given as places in `index.spans`. A view is made once and moved from one trainable set to the next.
    """

    def __init__(self, index: ModelIndex, trainable: Collection[str]) -> None:
        self.index = index
        self._places: dict[str, list[int]] = {}
        for place, name in enumerate(index.entries):
            self._places.setdefault(name, []).append(place)
        self._flags = bytearray(name in trainable for name in index.entries)
        self._ranges = [
            (place, span.start, span.stop) for place, span in enumerate(index.spans) if span.stop > span.start
        ]
        self._gaps = self._between_owners()
        self._frozen: list[tuple[int, int, int]] | None = None

    def move(self, unfrozen: Iterable[str], frozen: Iterable[str]) -> None:
        """Take in what began and what stopped to train."""
        for names, flag in ((unfrozen, 1), (frozen, 0)):
            for name in names:
                for place in self._places[name]:
                    self._flags[place] = flag
        self._frozen = None

    def _ranges_frozen(self) -> list[tuple[int, int, int]]:
        """The modules that have parameters and train none of them, with their ranges."""
        if self._frozen is None:
            sums = list(accumulate(self._flags, initial=0))
            self._frozen = [(place, start, stop) for place, start, stop in self._ranges if sums[start] == sums[stop]]
        return self._frozen

    def frozen(self, places: Collection[int]) -> set[int]:
        """Which of these modules train nothing; one without parameters follows the module it lies in."""
        return set(places) & self._with_subtrees([place for place, _, _ in self._ranges_frozen()])

    def train_nothing(self, places: Collection[int]) -> set[int]:
        """Which of these modules have no parameter that trains, with none at all among them."""
        spans = self.index.spans
        return {place for place in places if not any(self._flags[spans[place].start : spans[place].stop])}

    def frozen_modules(self, mine: Collection[str]) -> set[int]:
        """Modules to run in eval mode because of the frozen parameters `mine`.

        A module whose parameters are all frozen, some of them mine, with everything under it; and modules
        without parameters (Dropout) that lie between two such modules in registration order.
        """
        sums = list(accumulate([name in mine for name in self.index.entries], initial=0))
        inside = self._with_subtrees(
            [place for place, start, stop in self._ranges_frozen() if sums[stop] > sums[start]]
        )
        inside.update([place for place, before, after in self._gaps if before in inside and after in inside])
        return inside

    def _with_subtrees(self, places: Iterable[int]) -> set[int]:
        """Places, in ascending order, and all that lie under them."""
        found: set[int] = set()
        done = 0
        for place in places:
            if place >= done:
                done = self.index.spans[place].end
                found.update(range(place, done))
        return found

    def _between_owners(self) -> list[tuple[int, int, int]]:
        """Each module without parameters, with the modules that own the parameter before and after it."""
        owner: dict[int, int] = {}
        for place, span in enumerate(self.index.spans):
            own = sum(parameter is not None for parameter in span.module._parameters.values())
            owner.update((entry, place) for entry in range(span.start, span.start + own))
        gaps = []
        for place, span in enumerate(self.index.spans):
            if span.start == span.stop and span.start in owner:
                before = span.start - 1
                while before >= 0 and self.index.spans[owner[before]].end > place:  # a position, of a module around it
                    before -= 1
                if before >= 0:
                    gaps.append((place, owner[before], owner[span.start]))
        return gaps
