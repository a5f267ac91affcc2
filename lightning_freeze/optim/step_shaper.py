"""Changes for a single update: scaled rates, other options of a group, and parameters that must not move.

All torch optimizers skip a parameter without a gradient: no momentum, no decay, no count. Rates are multiplied just
before the update and restored right after it, because a recursive scheduler would read a factor that stays in
`group["lr"]` back and compound it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.optim.slotted import SlottedOptimizer


class Shape(Protocol):
    """The hooks around an update."""

    def drop_idle(self, slotted: SlottedOptimizer) -> None:
        """Remove the gradients of parameters that must not move."""

    def observe(self, slotted: SlottedOptimizer) -> None:
        """Read the gradients of the update; called once per update."""

    def factors(self, slotted: SlottedOptimizer) -> Sequence[Any]:
        """One factor of the rate per slot."""

    def options(self, slotted: SlottedOptimizer) -> Sequence[Mapping[str, Any]]:
        """Options for this update, name -> value, one dict per slot."""

    def updated(self, slotted: SlottedOptimizer, rates: Sequence[Any]) -> None:
        """Act right after the update that used these rates."""


class StepShaper:
    """Remove gradients, multiply the rates of slots and set options before each update; count the steps.

    The closure of a step, in which Lightning runs `training_step`, sees the unchanged groups. If the update itself
    raises, the groups are restored before the next step or by `close`.

    Args:
        slotted: the optimizer.
        shape: the hooks around the update.
    """

    def __init__(self, slotted: SlottedOptimizer, shape: Shape) -> None:
        self._slotted = slotted
        self._shape_of = shape
        self._plain: list[dict[str, Any]] | None = None  # what was written over, of each group
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
        self._shape_of.drop_idle(self._slotted)  # a closure that is called again makes the gradients again
        if self._plain is not None:  # but the rates are scaled
            return
        self._shape_of.observe(self._slotted)
        groups = self._slotted.optimizer.param_groups
        factors, options = self._shape_of.factors(self._slotted), self._shape_of.options(self._slotted)
        self._plain = [{key: group[key] for key in ("lr", *mine)} for group, mine in zip(groups, options, strict=True)]
        for group, factor, mine in zip(groups, factors, options, strict=True):
            if isinstance(factor, Tensor) or factor != 1:
                group["lr"] = group["lr"] * factor
            group.update(mine)
        self.used = [group["lr"] for group in groups]

    def _put_back(self) -> None:
        if self._plain is not None:
            for group, plain in zip(self._slotted.optimizer.param_groups, self._plain, strict=True):
                group.update(plain)
            self._plain = None

    def _after(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._plain is not None:  # only once where a subclass's step calls that of its base, which has hooks too
            self._put_back()
            self._shape_of.updated(self._slotted, self.used)
            self._slotted.steps += 1

    def close(self) -> None:
        """Restore the groups and remove the hooks from the optimizer."""
        self._put_back()
        for handle in self._handles:
            handle.remove()
