"""What holds for one update only: rates of warm-up and adaptive factors, and parameters that must not move.

Every optimizer of torch skips a parameter without a gradient: no momentum, no decay, no count. A factor written to
`group["lr"]` for longer would be read back by every recursive scheduler and grow into the schedule. So gradients are
taken away and rates multiplied just before the update, and the rates put back right after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.optim.slots import Slot
from lightning_freeze.optim.slotted import SlottedOptimizer

StepFactors = Callable[[Optimizer, Sequence[Slot], int], Sequence[Any]]


class StepShaper:
    """Before each update, takes gradients away and multiplies the rates of the slots; counts the steps.

    The closure of a step, in which Lightning runs `training_step`, sees the plain rates. When the update itself
    raises, the rates are put back before the next step, or by `close`.

    Args:
        slotted: the optimizer.
        drop_idle: takes away the gradients of what must not move.
        observe: looks at the gradients of the update; once for each.
        factors: (optimizer, slots, earlier steps) -> one factor per slot.
    """

    def __init__(
        self,
        slotted: SlottedOptimizer,
        drop_idle: Callable[[SlottedOptimizer], None],
        observe: Callable[[SlottedOptimizer], None],
        factors: StepFactors,
    ) -> None:
        self._slotted = slotted
        self._drop_idle = drop_idle
        self._observe = observe
        self._factors = factors
        self._plain: list[Any] | None = None
        self.used: list[Any] = []  # the rates of the last step, one per slot
        optimizer = slotted.optimizer
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def _before(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._put_back()  # after a step that raised; in a step inside a step the same rates come again
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._shape()
            return None

        def then_shape() -> Any:
            loss = closure()
            self._shape()
            return loss

        others = {key: value for key, value in kwargs.items() if key != "closure"}
        return (args[0], then_shape, *args[2:]), others

    def _shape(self) -> None:
        self._drop_idle(self._slotted)  # a closure that is called again makes the gradients again
        if self._plain is not None:  # but the rates are scaled
            return
        self._observe(self._slotted)
        groups = self._slotted.optimizer.param_groups
        factors = self._factors(self._slotted.optimizer, self._slotted.slots, self._slotted.steps)
        self._plain = [group["lr"] for group in groups]
        for group, factor in zip(groups, factors, strict=True):
            if isinstance(factor, Tensor) or factor != 1:
                group["lr"] = group["lr"] * factor
        self.used = [group["lr"] for group in groups]

    def _put_back(self) -> None:
        if self._plain is not None:
            for group, rate in zip(self._slotted.optimizer.param_groups, self._plain, strict=True):
                group["lr"] = rate
            self._plain = None

    def _after(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._plain is not None:  # only once where a subclass's step calls that of its base, which has hooks too
            self._put_back()
            self._slotted.steps += 1

    def close(self) -> None:
        """Put the rates back and leave the optimizer alone."""
        self._put_back()
        for handle in self._handles:
            handle.remove()
