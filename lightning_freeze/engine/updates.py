"""What policies do around each optimizer step: gradients dropped, rates scaled, steps counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.engine.policy import Policy
from lightning_freeze.optim.slots import Slot
from lightning_freeze.optim.slotted import SlottedOptimizer
from lightning_freeze.optim.step_shaper import StepShaper


class Updates:
    """The steps of a run's optimizers under its policies.

    Args:
        optimizers: the slotted optimizers.
        policies: those that ask for nothing in a step cost nothing.
    """

    def __init__(self, optimizers: Sequence[SlottedOptimizer], policies: Sequence[Policy]) -> None:
        self._optimizers = optimizers
        self._idling = [policy for policy in policies if policy.idles]
        self._shaping = [policy for policy in policies if policy.shapes_steps]
        shaped = optimizers if self._idling or self._shaping else []
        self._shapers = [StepShaper(slotted, self._drop_idle, self._observe, self._step_factors) for slotted in shaped]

    def before(self, optimizer: Optimizer) -> None:
        """Drop the gradients of what must not move, before they are clipped: right before the update is too late."""
        if self._idling:
            for slotted in self._optimizers:
                if slotted.optimizer is optimizer:
                    self._drop_idle(slotted)

    def _drop_idle(self, slotted: SlottedOptimizer) -> None:
        for policy in self._idling:
            for name in policy.idle(slotted.optimizer):
                if (parameter := slotted.parameters.get(name)) is not None:  # another optimizer's may be collecting
                    parameter.grad = None

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

    def rates(self) -> list[list[float]]:
        """The learning rate of each slot of each optimizer in the next step, warm-up included."""
        found = []
        for slotted in self._optimizers:
            rates = [group["lr"] for group in slotted.optimizer.param_groups]
            if self._shapers:
                factors = self._step_factors(slotted.optimizer, slotted.slots, slotted.steps)
                rates = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
            found.append([float(rate) for rate in rates])
        return found

    def rates_used(self) -> list[list[float]]:
        """The learning rate of each slot of each optimizer in its last step, where a policy shapes steps."""
        plain = [[group["lr"] for group in slotted.optimizer.param_groups] for slotted in self._optimizers]
        used = [shaper.used for shaper in self._shapers] or plain
        return [[float(rate) for rate in last or rates] for last, rates in zip(used, plain, strict=True)]

    def close(self) -> None:
        """Leave the optimizers alone."""
        for shaper in self._shapers:
            shaper.close()
