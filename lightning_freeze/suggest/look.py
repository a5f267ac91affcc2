"""A first look: stages, the cost of a step for each trainable set, and gradient statistics of each stage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_freeze.errors import FreezeError, PlanError
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.model.layers import has_statistics
from lightning_freeze.model.patterns import select_names
from lightning_freeze.preview.memory import state_per_element
from lightning_freeze.preview.one_step import loss_of
from lightning_freeze.preview.step_cost import Cost, cost
from lightning_freeze.stages.discover import discover_stages
from lightning_freeze.stages.stage import Stage
from lightning_freeze.suggest.isolation import copy_of_module, seed_all
from lightning_freeze.suggest.trial import Clock, Task, running
from lightning_freeze.trainer._lightning import Callback

STAGES = 6  # maximum number of stages; more would not fit the table, and neighbours behave alike
_BATCHES = 8


@dataclass(frozen=True)
class StageLook:
    """A stage and its gradients over some batches, at the initial weights.

    Attributes:
        name: name of the stage.
        parameters: number of elements of its trainable parameters.
        ratio: norm of the mean gradient over the norm of the weights (Lee et al., 2023, arXiv:2210.11466: RGN).
        fisher: mean square of a gradient's elements.
        signal: mean over elements of squared mean over variance between batches (the same paper: SNR).
    """

    name: str
    parameters: int
    ratio: float
    fisher: float
    signal: float


@dataclass
class Look:
    """The information before any training.

    Attributes:
        stages: the stages, head first.
        rows: gradient statistics of each stage.
        has_norm: whether there are normalisation layers with running statistics.
        base: learning rate of the module's optimizer.
        step: seconds of an optimizer step that trains everything.
        adam: whether every optimizer is of the Adam family, whose good rates differ little between tasks.
        costs: stages that train -> cost of a step.
        remarks: sentences about things that could not be measured.
    """

    stages: list[Stage]
    rows: list[StageLook]
    has_norm: bool
    base: float
    step: float
    adam: bool = False
    costs: dict[frozenset[int], Cost] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def look(task: Task) -> Look:
    """Find the stages, and run some batches through a copy of the module without optimizer steps.

    Raises:
        PlanError: the learning rate is 0, or there is no loss.
    """
    seed_all(task.seed)
    module = copy_of_module(task.module)
    eyes = Eyes(_BATCHES)
    trainer = task.trainer(
        [eyes, clock := Clock(task.clock)], max_epochs=1, limit_train_batches=_BATCHES, limit_val_batches=0
    )
    with running():
        trainer.fit(module, **task.fed(0))
    if not eyes.base:
        raise PlanError(
            "the optimizer starts with a learning rate of 0, or there is none, so rates cannot be compared with it.\n"
            "  Give configure_optimizers a rate greater than 0"
        )
    index = ModelIndex(module)
    stages = _trainable(index, discover_stages(module, max_stages=STAGES))
    rows = [eyes.row(stage.name, select_names(index, stage.patterns, "suggest")) for stage in stages]
    has_norm = any(has_statistics(span.module) for span in index.spans)
    costs = _costs(module, index, stages, eyes)
    return Look(stages, rows, has_norm, eyes.base, clock.step(task.every), eyes.adam, costs, eyes.remarks)


def _trainable(index: ModelIndex, stages: Sequence[Stage]) -> list[Stage]:
    """Remove parameters that required no gradient before."""
    found = [
        stage
        for stage in stages
        if any(index.parameters[name].requires_grad for name in select_names(index, stage.patterns, "suggest"))
    ]
    if not found:
        raise PlanError("no parameter of the module requires a gradient, so nothing can be trained")
    return found


def _costs(module: Any, index: ModelIndex, stages: Sequence[Stage], eyes: Eyes) -> dict[frozenset[int], Cost]:
    """The cost of a step that trains the head, the head and the next stage, and so on, and all other sets in use."""
    if eyes.step is None:
        return {}
    flags = {name: parameter.requires_grad for name, parameter in index.parameters.items()}
    names = [set(select_names(index, stage.patterns, "suggest")) for stage in stages]
    found: dict[frozenset[int], Cost] = {}
    try:
        for depth in range(1, len(stages) + 1):
            kept = set(itertools.chain.from_iterable(names[:depth]))
            for name, parameter in index.parameters.items():
                parameter.requires_grad_(flags[name] and name in kept)
            one = cost(module, eyes.step, repeats=2)
            one.state = one.trainable * eyes.state
            found[frozenset(range(depth))] = one
    except (FreezeError, RuntimeError, TypeError, AttributeError) as error:
        eyes.remarks.append(f"The cost of a step could not be measured: {str(error).splitlines()[0]}")
    return found


class Eyes(Callback):
    """Sum up gradients and their squares, and prevent optimizers from changing weights."""

    def __init__(self, batches: int) -> None:
        self.batches, self.seen = batches, 0
        self.base, self.state, self.adam = 0.0, 0.0, False
        self.sums: dict[str, Any] = {}
        self.squares: dict[str, Any] = {}
        self.weights: dict[str, float] = {}
        self.remarks: list[str] = []
        self.batch: Any = None
        self.step: Any = None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        trainer.strategy.lr_scheduler_configs = []
        self.adam = all("adam" in type(one).__name__.lower() for one in trainer.optimizers)
        groups = [group for one in trainer.optimizers for group in one.param_groups]
        self.base = max((float(group.get("initial_lr", group["lr"])) for group in groups), default=0.0)
        for group in groups:
            group["lr"] = 0.0
        try:
            self.state = max(state_per_element(one, next(module.parameters()).dtype) for one in trainer.optimizers)
        except (FreezeError, ValueError) as error:
            self.remarks.append(str(error))

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batch = batch

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.seen += 1
        with torch.no_grad():
            for name, parameter in ModelIndex(module).parameters.items():
                if parameter.grad is not None and not parameter.grad.is_sparse:
                    gradient = parameter.grad.float()
                    self.sums[name] = self.sums.get(name, 0.0) + gradient
                    self.squares[name] = self.squares.get(name, 0.0) + gradient * gradient
                    self.weights[name] = float(parameter.square().sum())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if module.automatic_optimization and self.batch is not None:
            self.step = _step_of(module, self.batch)

    def row(self, name: str, names: Sequence[str]) -> StageLook:
        """The gradient statistics of a stage."""
        known = [one for one in names if one in self.sums]
        size = sum(self.sums[one].numel() for one in known)
        if not known:
            return StageLook(name, 0, 0.0, 0.0, 0.0)
        means = [self.sums[one] / self.seen for one in known]
        squares = [self.squares[one] / self.seen for one in known]
        weight = sum(self.weights[one] for one in known) ** 0.5
        norm = sum(float(mean.square().sum()) for mean in means) ** 0.5
        signal = sum(
            float((mean.square() / (square - mean.square()).clamp_min(1e-20)).clamp_max(1e3).sum())
            for mean, square in zip(means, squares, strict=True)
        )
        return StageLook(
            name, size, norm / (weight + 1e-12), sum(float(s.sum()) for s in squares) / size, signal / size
        )


def _step_of(module: Any, batch: Any) -> Any:
    """A training step outside a fit; logged values are discarded."""
    return lambda: loss_of(module, batch)
