"""A frozen module in the cache: whether it may be skipped, and a token that identifies its state."""

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
        called: whether it was called in a step.
        passed: whether it was not, so that perhaps only its children are called.
        shadow: replaces its forward in a step.
        own: the forward of the instance, if it has one.
        token: identifies the state of the module.
        whole: whether it may be skipped; None: unknown yet.
        codes: the functions outside torch that run in a call.
        depends: return whether the outside values that these read are unchanged.
        looks: whether it asks if gradients are enabled; results with and without are distinct then.
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
        """The token of the module's current state; 0 for a new state."""
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
        """Whether it is in the state with this token, by versions and identities."""
        seal = self._seals.get(token)
        return seal is not None and seal.holds() and seal.same_numbers()

    def epoch_start(self) -> None:
        """Look for writes that did not raise a version, and check a module again that kept changing."""
        self._seals = {token: seal for token, seal in self._seals.items() if seal.same_numbers()}
        self._broken = 0

    def forget(self) -> None:
        """Forget the observations."""
        self._seals.clear()
        self._candidate, self.whole, self._tries = None, None, 0
        self.depends = []

    def hooked(self) -> bool:
        """Whether a module inside has a hook."""
        return any(has_hooks(one) for one in self.module.modules() if one is not self.module)

    def judge(self, flaw: str, final: bool) -> None:
        """Record the observation of a call; the flaw is "" if the module may be skipped."""
        self._tries += 1
        self.flaw = flaw
        if not flaw:
            self.whole = True
        elif final or self._tries >= _TRIES:
            self.whole = False

    @property
    def open(self) -> bool:
        """Whether to intercept its children: it may not be skipped, changes all the time, or is not called."""
        return self.whole is False or self.passed or self._broken > _PATIENCE

    def tokens(self) -> set[int]:
        """The tokens of the known states."""
        return set(self._seals)


def entries(modules: Iterable[nn.Module], parts: Mapping[nn.Module, Part]) -> list[nn.Module]:
    """The outermost parts in pre-order; a part that must be opened is replaced by its children."""
    found, inside = [], set[int]()
    for module in modules:
        part = parts.get(module)
        if part is not None and id(module) not in inside:
            found.append(module)
            if not part.open:
                inside.update(id(one) for one in module.modules())
    return found
