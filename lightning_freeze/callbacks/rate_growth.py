"""A learning rate that starts low and grows from epoch to epoch."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from lightning_freeze import arguments
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row, Wants
from lightning_freeze.errors import PlanError
from lightning_freeze.model.patterns import as_patterns
from lightning_freeze.optim.slots import Slot
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.trainer.callback import FreezeCallback


class RateGrowth(FreezeCallback):
    """Multiply the rate of the selected parameters by `initial * growth**k` in epoch `start + k`.

    Lightning's `BackboneFinetuning` does the same with its `lambda_func`; here it is a factor of the scheduled rate.

    Args:
        patterns: the parameters (see `select`).
        start: the epoch with k = 0, zero-based; k is 0 before it too.
        initial: factor in epoch `start`.
        growth: ratio of the factors of consecutive epochs.
        limit: the largest factor; None: no limit.
        verbose: print the table at the start, on rank 0.

    Raises:
        PlanError: the arguments cannot work.
        PatternError: at setup, a pattern matches nothing.

    Examples:
        >>> rate = RateGrowth("backbone", start=10, initial=0.1)
        >>> [rate.factor(epoch) for epoch in (9, 10, 11, 12, 13, 14)]
        [0.1, 0.1, 0.2, 0.4, 0.8, 1.0]
    """

    def __init__(
        self,
        patterns: str | list[str],
        start: int = 0,
        initial: float = 0.1,
        growth: float = 2.0,
        limit: float | None = 1.0,
        verbose: bool = True,
    ) -> None:
        if not as_patterns(patterns, self.title):
            raise PlanError(f"{self.title}: patterns is empty.\n  Name what grows, or '*'")
        arguments.check_positive(start, "start", self.title, minimum=0)
        for name, value in {"initial": initial, "growth": growth, "limit": 1.0 if limit is None else limit}.items():
            arguments.check_number(value, name, self.title)
            if value <= 0:
                raise PlanError(f"{self.title}: {name} must be greater than 0, got {value}")
        self.patterns = patterns
        self.start = start
        self.initial = initial
        self.growth = growth
        self.limit = limit
        self.verbose = verbose
        self._names: list[str] = []
        self._grows: frozenset[str] = frozenset()
        self._factor = 1.0

    def factor(self, epoch: int) -> float:
        """The factor in an epoch."""
        factor = self.initial * self.growth ** max(0, epoch - self.start)
        return factor if self.limit is None else min(self.limit, factor)

    def bind(self, context: Context) -> Binding:
        self._names = context.select(self.patterns, self.title)
        self._grows = frozenset(self._names)
        return Binding(labels=dict.fromkeys(self._names, "growing"))

    def wants(self, progress: Progress) -> Wants:
        self._factor = self.factor(progress.epoch)
        return Wants()

    @property
    def shapes_steps(self) -> bool:
        return True

    def step_factors(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> Sequence[float] | None:
        return [self._factor if self._grows.intersection(slot.names[:1]) else 1.0 for slot in slots]

    def rows(self, progress: Progress) -> list[Row]:
        upto = "" if self.limit is None else f" up to x{self.limit:g}"
        when = f"x{self.initial:g} in epoch {self.start}, then x{self.growth:g} each epoch{upto}"
        return [Row(self.title, as_patterns(self.patterns), when, self._names)]
