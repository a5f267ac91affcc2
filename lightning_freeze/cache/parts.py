"""A frozen module as the cache knows it: whether it may be skipped, and a token that changes when it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from torch import nn

from lightning_freeze.cache.eligible import PARTICULAR
from lightning_freeze.cache.observation import Unchanged, has_hooks
from lightning_freeze.cache.seal import Seal

_SEALS, _PATIENCE, _TRIES = 4, 20, 2
_tokens = count(1)


class Part:
    """One clean module.

    Attributes:
        called: it was called in a step.
        passed: it was not, so perhaps only the modules in it are.
        shadow: what stands for its forward in a step.
        own: the forward that the module itself has, beside that of its class.
        token: another one for each state that the module was in.
        whole: it may be skipped; None: not known yet.
        codes: the functions outside torch that run in a call.
        depends: tell whether what these read from outside is as it was.
        looks: it asks whether gradients are on, so results with and without are told apart.
        flaw: why it may not be skipped.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.whole: bool | None = None
        self.looks = any(isinstance(one, PARTICULAR) for one in module.modules())
        self.flaw = ""
        self.token = 0
        self.called = False
        self.passed = type(module).forward is nn.Module.forward
        self.shadow: Any = None
        self.own: Any = None
        self.depends: list[Unchanged] = []
        self.codes: dict[Any, Any] = {}
        self._tries = 0
        self._seals: dict[int, Seal] = {}
        self._candidate: Seal | None = None
        self._broken = 0

    def check(self) -> int:
        """The token of the state that the module is in; 0 while it is in one that was not there before."""
        if self._broken > _PATIENCE:
            return 0
        if not all(same() for same in self.depends):
            self.forget()
            return 0
        for token, seal in self._seals.items():
            if seal.holds():
                self.token, self._broken = token, 0
                return token
        if not self._seals or (self._candidate is not None and self._candidate.holds()):
            return self._adopt(self._candidate if self._seals else Seal(self.module))
        self._candidate = Seal(self.module)
        self._broken += 1
        return 0

    def _adopt(self, seal: Seal | None) -> int:
        assert seal is not None
        self._seals = {token: one for token, one in self._seals.items() if not one.dead()}
        if len(self._seals) >= _SEALS:
            del self._seals[next(iter(self._seals))]
        self.token, self._candidate = next(_tokens), None
        self._seals[self.token] = seal
        return self.token

    def still(self, token: int) -> bool:
        """Whether it is in the state with this token, as far as can be told without a look at all numbers."""
        seal = self._seals.get(token)
        return seal is not None and seal.holds() and seal.same_numbers()

    def epoch_start(self) -> None:
        """Look for writes that count no version, and have another look at a module that kept changing."""
        self._seals = {token: seal for token, seal in self._seals.items() if seal.same_numbers()}
        self._broken = 0

    def forget(self) -> None:
        """What was seen does not hold any more."""
        self._seals.clear()
        self._candidate, self.whole, self._tries = None, None, 0
        self.depends = []

    def hooked(self) -> bool:
        """Whether a module in it has a hook."""
        return any(has_hooks(one) for one in self.module.modules() if one is not self.module)

    def judge(self, flaw: str, final: bool) -> None:
        """Take in what was seen in a call: "" if nothing speaks against skipping it."""
        self._tries += 1
        self.flaw = flaw
        if not flaw:
            self.whole = True
        elif final or self._tries >= _TRIES:
            self.whole = False

    @property
    def open(self) -> bool:
        """Whether what is in it has to be looked at: it may not be skipped, changes all the time, or is not called."""
        return self.whole is False or self.passed or self._broken > _PATIENCE

    def tokens(self) -> set[int]:
        """Of the states that are known."""
        return set(self._seals)


def entries(modules: Iterable[nn.Module], parts: Mapping[nn.Module, Part]) -> list[nn.Module]:
    """The parts, in pre-order, that are in no other one, but for those that have to be opened."""
    found, inside = [], set[int]()
    for module in modules:
        part = parts.get(module)
        if part is not None and id(module) not in inside:
            found.append(module)
            if not part.open:
                inside.update(id(one) for one in module.modules())
    return found
