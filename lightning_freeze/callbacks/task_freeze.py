"""Multi-task models: a step moves only the branches of the tasks in its batch, and the shared parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row
from lightning_freeze.errors import PlanError
from lightning_freeze.model.patterns import as_patterns
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.schedule.tasks import describe_batch, names_in, tasks_of
from lightning_freeze.trainer._lightning import LightningModule, Trainer
from lightning_freeze.trainer.callback import FreezeCallback
from lightning_freeze.trainer.ranks import any_rank


class TaskFreeze(FreezeCallback):
    """Let a step move only the branches of the tasks in its batch, and the parameters in no branch.

    A branch whose task is absent gets no update at all: no momentum, no weight decay, no step count, even with
    `zero_grad(set_to_none=False)`. Its optimizer state stays. A parameter selected by several tasks moves if any of
    them is present. The tasks of a step are those of all batches since the last step (gradient accumulation) on all
    ranks. So all ranks make the same step, with gradients averaged by DDP.

    Args:
        tasks: task -> patterns (see `select`) of the parameters that only this task may update; an empty list for a
            task without a branch. All other parameters are shared.
        task_key: the key of the batch that holds its task: a str, or a list with the task of each row. Or the name of
            a method of the LightningModule: batch -> str or set of str.
        verbose: print the table of tasks at the start, on rank 0.

    Raises:
        PlanError: the arguments cannot work; during training, a batch has no task or an unknown one.
        PatternError: at setup, a pattern matches nothing.
        UnsupportedStrategyError: at setup, FSDP over several ranks, or DDP with a static graph.

    Examples:
        >>> TaskFreeze({"pictures": "model.from_pictures", "names": ["model.embed", "model.from_names"]}).task_key
        'task'
    """

    needs_trainer = True

    def __init__(self, tasks: dict[str, str | list[str]], task_key: str = "task", verbose: bool = True) -> None:
        if not isinstance(tasks, dict) or not tasks or not all(isinstance(task, str) and task for task in tasks):
            raise PlanError(
                f"{self.title}: tasks={tasks!r} must name at least one task: {{'task': patterns of its branch, ...}}"
            )
        for task, patterns in tasks.items():
            as_patterns(patterns, f"{self.title} task '{task}'")
        if not isinstance(task_key, str) or not task_key:
            raise PlanError(f"{self.title}: task_key={task_key!r} must be a key of the batch or the name of a method")
        self.tasks = tasks
        self.task_key = task_key
        self.verbose = verbose
        self._branches: dict[frozenset[str], list[str]] = {}  # set of tasks -> parameters that these tasks move
        self._idle: dict[frozenset[str], tuple[str, ...]] = {}  # tasks of a step -> parameters that must not move
        self._device = torch.device("cpu")
        self._begin()

    # ---- the policy

    def bind(self, context: Context) -> Binding:
        owners: dict[str, set[str]] = {}
        for task, patterns in self.tasks.items():
            for name in context.select(patterns, f"{self.title} task '{task}'"):
                owners.setdefault(name, set()).add(task)
        self._branches, self._idle = {}, {}
        for name, tasks in owners.items():
            self._branches.setdefault(frozenset(tasks), []).append(name)
        return Binding(labels={name: "-and-".join(sorted(tasks)) for name, tasks in owners.items()})

    @property
    def idles(self) -> bool:
        return True

    def idle(self, optimizer: Optimizer) -> Collection[str]:
        tasks = self._tasks_of_step(id(optimizer))
        if tasks not in self._idle:
            branches = [names for owners, names in self._branches.items() if owners.isdisjoint(tasks)]
            self._idle[tasks] = tuple(name for names in branches for name in names)
        return self._idle[tasks]

    # ---- the tasks of a step: of each batch since the last update, by optimizer

    def _begin(self) -> None:
        self._seen: set[str] = set()  # since the window began
        self._since: dict[int, set[str]] = {}  # optimizer -> since its last update
        self._agreed: dict[int, frozenset[str]] = {}  # optimizers that are updated with this batch -> on all ranks

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if pl_module.automatic_optimization and batch_idx % trainer.accumulate_grad_batches == 0:
            self._begin()  # Lightning clears the gradients here, even if the last epoch ended within a window
        self._device = trainer.strategy.root_device
        self._take(self._tasks_in(batch, pl_module))

    def _take(self, tasks: frozenset[str]) -> None:
        for updated in self._agreed:
            self._since[updated] = set()
        self._agreed = {}
        for seen in (self._seen, *self._since.values()):
            seen.update(tasks)

    def _tasks_of_step(self, optimizer: int) -> frozenset[str]:
        if optimizer not in self._agreed:  # called again for the same update, and by a second update with this batch
            here = self._since.setdefault(optimizer, set(self._seen))
            there = any_rank([task in here for task in self.tasks], self._device)
            self._agreed[optimizer] = frozenset(task for task, on in zip(self.tasks, there, strict=True) if on)
        return self._agreed[optimizer]

    def _tasks_in(self, batch: Any, module: Any) -> frozenset[str]:
        method = _method(module, self.task_key)
        try:
            if method is None:
                tasks = tasks_of(batch, self.task_key, self.tasks)
            else:
                tasks = frozenset(names_in(method(batch), "it returned"))
        except PlanError as error:
            raise PlanError(f"{self.title}: task_key='{self.task_key}': {error}") from None
        if unknown := sorted(tasks - set(self.tasks)):
            raise PlanError(
                f"{self.title}: a batch is of the task '{unknown[0]}', which is not among the tasks: "
                f"{', '.join(self.tasks)}.\n  Add it to tasks, with an empty list when it has no branch of its own"
            )
        if not tasks:
            asked = f"the method {self.task_key}() named none" if method else f"there is no '{self.task_key}' in it"
            raise PlanError(
                f"{self.title}: a batch has no task: {asked}. The batch is {describe_batch(batch)}.\n"
                f"  Let the dataset put the task into each batch under '{self.task_key}', or give the LightningModule "
                "a method that says it, and name it as task_key"
            )
        return tasks

    # ---- tables, checkpoints

    def rows(self, progress: Progress) -> list[Row]:
        return [
            Row(task, as_patterns(patterns), "with its batches", self._names(task))
            for task, patterns in self.tasks.items()
        ]

    def _names(self, task: str) -> list[str]:
        return [name for owners, names in self._branches.items() if task in owners for name in names]

    @property
    def signature(self) -> Any:
        return [[task, as_patterns(patterns)] for task, patterns in self.tasks.items()]

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        self._begin()


def _method(module: nn.Module, name: str) -> Any:
    """The user's method of this name; methods of LightningModule itself (`log`, `type`) do not count."""
    base = next(cls for cls in type(module).__mro__ if cls.__name__ == "LightningModule")
    found = getattr(module, name, None)
    own = callable(found) and not isinstance(found, nn.Module) and not hasattr(base, name)
    return found if own else None
