"""Pull weights back to their pretrained values, instead of to zero as weight decay does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze import arguments
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row
from lightning_freeze.errors import PlanError
from lightning_freeze.model.patterns import as_patterns
from lightning_freeze.optim.anchor import Anchor, pull, skipped
from lightning_freeze.optim.slots import Slot
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.stages.stage import Stage, check_stages
from lightning_freeze.trainer.callback import FreezeCallback


@dataclass
class _Pulled:
    """What is pulled of one slot: all of its parameters that the patterns select, as long as its members stay."""

    members: list[nn.Parameter]  # the list of the optimizer's group
    parameters: list[nn.Parameter]
    starts: list[Tensor]
    strength: float

    def moved(self) -> tuple[list[nn.Parameter], list[Tensor]]:
        """What the last step moved: parameters with a gradient, and their start values."""
        moved = [parameter.grad is not None for parameter in self.parameters]
        if all(moved):
            return self.parameters, self.starts
        return list(compress(self.parameters, moved)), list(compress(self.starts, moved))


class AnchorWeights(FreezeCallback):
    """After each optimizer step, move trainable parameters slightly back to their start values.

    `w += lr * strength * (w_start - w)`: L2-SP (Li et al., 2018, arXiv:1802.01483), decoupled like the weight decay of
    AdamW. `lr` is the rate of the step with all factors. `w_start` is the value at the start of the first fit; a
    resumed run takes it from the checkpoint. A parameter that a step does not move (no gradient) is not pulled. With
    strength 0 the weights are free; with `lr * strength` of 1 or more they stay at their start.

    Args:
        strength: strength for the top stage, per unit of the learning rate, like `weight_decay` of AdamW.
        patterns: the parameters to pull (see `select`). Exclude those with random start values: `["*", "!model.fc"]`.
        decay: the strength of stage k below the top is `strength / decay**k`, 0 < decay <= 1.
        device: "cpu" keeps the start values in host memory and copies them to the device in each step; "model" keeps
            them on the device of the parameters.
        stages: the stages for `decay`. None: those of the `GradualUnfreeze` in the same Trainer, else "auto".
        verbose: print the table at the start, on rank 0.

    Raises:
        PlanError: the arguments cannot work.
        PatternError: at setup, a pattern matches nothing.

    Examples:
        >>> AnchorWeights(0.5, ["*", "!model.fc"]).strength
        0.5
        >>> AnchorWeights(-1)
        Traceback (most recent call last):
        ...
        lightning_freeze.errors.PlanError: AnchorWeights: strength must be a number of at least 0, got -1
    """

    def __init__(
        self,
        strength: float,
        patterns: str | list[str] = "*",
        decay: float = 1.0,
        device: Literal["cpu", "model"] = "cpu",
        stages: str | int | Sequence[str | Sequence[str] | Stage] | None = None,
        verbose: bool = True,
    ) -> None:
        if not arguments.is_number(strength) or strength < 0:
            raise PlanError(f"{self.title}: strength must be a number of at least 0, got {strength}")
        arguments.check_number(decay, "decay", self.title)
        if not 0 < decay <= 1:
            raise PlanError(f"{self.title}: decay must be greater than 0 and at most 1, got {decay}")
        arguments.check_choice(device, ("cpu", "model"), "device", self.title)
        if not as_patterns(patterns):
            raise PlanError(f"{self.title}: patterns is empty.\n  Name at least one parameter or module")
        if stages is not None:
            check_stages(stages, self.title)
        self.strength = float(strength)
        self.patterns = patterns
        self.decay = float(decay)
        self.device = device
        self.stages = stages
        self.verbose = verbose
        self._strengths: dict[str, float] = {}
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_parameters": {}, "_anchor": Anchor(on_host=True), "_pulled": {}}  # they are a fit's

    def _begin(self) -> None:
        self._parameters: dict[str, nn.Parameter] = {}
        self._anchor = Anchor(on_host=self.device == "cpu")
        self._pulled: dict[tuple[int, int], _Pulled] = {}  # optimizer and place of the slot

    # ---- the policy

    def bind(self, context: Context) -> Binding:
        names = context.select(self.patterns, self.title)
        if not names:
            raise PlanError(f"{self.title}: patterns={self.patterns!r} leave nothing to pull.\n  See the `!` patterns")
        self._parameters = context.index.parameters
        if self.decay == 1:
            self._strengths = dict.fromkeys(names, self.strength)
            return Binding()
        stages = context.stages(context.stages_beside(self.stages, self.title), self.title)
        depths = {name: depth for depth, stage in enumerate(stages) for name in stage.names}
        self._strengths = {name: self.strength / self.decay ** depths.get(name, len(stages)) for name in names}
        return Binding(labels={name: stage.name for stage in stages for name in stage.names})

    @property
    def shapes_steps(self) -> bool:
        return True

    def observe(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> None:
        for place, (slot, group) in enumerate(zip(slots, optimizer.param_groups, strict=True)):
            known = self._pulled.get((id(optimizer), place))
            if group["params"] and (known is None or known.members is not group["params"]):
                present = {id(parameter) for parameter in group["params"]}
                names = [
                    name for name in slot.names if name in self._strengths and id(self._parameters[name]) in present
                ]
                parameters = [self._parameters[name] for name in names]
                strength = self._strengths[names[0]] if names else 0.0
                starts = self._anchor.take(names, parameters)  # right before their first update
                self._pulled[id(optimizer), place] = _Pulled(group["params"], parameters, starts, strength)

    def updated(self, optimizer: Optimizer, slots: Sequence[Slot], rates: Sequence[Any]) -> None:
        skip = skipped(optimizer)
        pulls: dict[Any, tuple[list[nn.Parameter], list[Tensor]]] = {}  # slots with one weight are pulled at once
        for place, group in enumerate(optimizer.param_groups):
            pulled = self._pulled.get((id(optimizer), place))
            if pulled is None or not group["params"] or not pulled.strength:
                continue
            weight = rates[place] * pulled.strength
            here, there = pulls.setdefault(weight if skip is None else weight * (1 - skip), ([], []))
            parameters, starts = pulled.moved()
            here += parameters
            there += starts
        for weight, (here, there) in pulls.items():
            if here:
                pull(here, there, weight)

    # ---- tables, checkpoints

    def rows(self, progress: Progress) -> list[Row]:
        each = "" if self.decay == 1 else f", 1/{self.decay:g} of it more per stage below the top"
        when = f"each step pulls it to its start, strength {self.strength:g}{each}"
        return [Row(self.title, as_patterns(self.patterns), when, list(self._strengths))]

    def state_of_run(self) -> dict[str, Any]:
        return {"start": dict(sorted(self._anchor.values.items()))}  # sorted: ranks gather their parts in this order

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        self._anchor.values.clear()
        self._pulled = {}
        if "start" in state:
            self._anchor.load(state["start"], self._parameters)
