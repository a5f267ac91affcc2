"""Apply policies around each optimizer step: drop gradients, scale rates, count steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.engine.policy import Policy
from lightning_freeze.optim.slotted import SlottedOptimizer
from lightning_freeze.optim.step_shaper import StepShaper


class Updates:
    """The steps of a run's optimizers under its policies.

    Args:
        optimizers: the slotted optimizers.
        policies: the policies; one without hooks for steps costs nothing per step.
    """

    def __init__(self, optimizers: Sequence[SlottedOptimizer], policies: Sequence[Policy]) -> None:
        self._optimizers = optimizers
        self._idling = [policy for policy in policies if policy.idles]
        self._shaping = [policy for policy in policies if policy.shapes_steps]
        shaped = optimizers if self._idling or self._shaping else []
        self._shapers = [StepShaper(slotted, self) for slotted in shaped]

    def before(self, optimizer: Optimizer) -> None:
        """Drop the gradients of parameters that must not move, before gradients are clipped."""
        if self._idling:
            for slotted in self._optimizers:
                if slotted.optimizer is optimizer:
                    self.drop_idle(slotted)

    def drop_idle(self, slotted: SlottedOptimizer) -> None:
        """Drop the gradients of parameters that must not move in the next update."""
        for policy in self._idling:
            for name in policy.idle(slotted.optimizer):
                if (parameter := slotted.parameters.get(name)) is not None:  # another optimizer may still accumulate
                    parameter.grad = None

    def observe(self, slotted: SlottedOptimizer) -> None:
        """Let policies read the gradients of the next update."""
        for policy in self._shaping:
            policy.observe(slotted.optimizer, slotted.slots, slotted.steps)

    def factors(self, slotted: SlottedOptimizer) -> list[Any]:
        """The product of all policies' factors for the next update, one per slot."""
        product: list[Any] = [1.0] * len(slotted.slots)
        for policy in self._shaping:
            factors = policy.step_factors(slotted.optimizer, slotted.slots, slotted.steps)
            if factors is not None:
                product = [one * other for one, other in zip(product, factors, strict=True)]
        return product

    def options(self, slotted: SlottedOptimizer) -> list[dict[str, Any]]:
        """Options for the next update, one mapping per slot; a later policy wins."""
        merged: list[dict[str, Any]] = [{} for _ in slotted.slots]
        for policy in self._shaping:
            for options, more in zip(
                merged, policy.step_options(slotted.optimizer, slotted.slots, slotted.steps) or (), strict=False
            ):
                options.update(more)
        return merged

    def updated(self, slotted: SlottedOptimizer, rates: Sequence[Any]) -> None:
        """Tell the policies that the optimizer has made an update with these rates."""
        for policy in self._shaping:
            policy.updated(slotted.optimizer, slotted.slots, rates)

    def rates(self) -> list[list[float]]:
        """The learning rate of each slot in the next step of each optimizer, warm-up included."""
        found = []
        for slotted in self._optimizers:
            rates = [group["lr"] for group in slotted.optimizer.param_groups]
            if self._shapers:
                factors = self.factors(slotted)
                rates = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
            found.append([float(rate) for rate in rates])
        return found

    def rates_used(self) -> list[list[float]]:
        """The learning rate of each slot in the last step of each optimizer, if a policy shapes steps."""
        plain = [[group["lr"] for group in slotted.optimizer.param_groups] for slotted in self._optimizers]
        used = [shaper.used for shaper in self._shapers] or plain
        return [[float(rate) for rate in last or rates] for last, rates in zip(used, plain, strict=True)]

    def close(self) -> None:
        """Remove all hooks from the optimizers."""
        for shaper in self._shapers:
            shaper.close()
