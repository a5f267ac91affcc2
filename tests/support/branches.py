"""A network of two tasks with two inputs, and batches of one task or of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

TASKS = {"a": ["in_a", "out_a"], "b": ["in_b", "out_b"]}
ALTERNATING = ["a", "b", "b", "a", "ab", "b"]


def batch_of(tasks: str, seed: int) -> dict[str, Any]:
    """Six rows, shared out among the tasks; each task has inputs of its own size, and a target in common."""
    generator = torch.Generator().manual_seed(seed)
    rows = [tasks[k % len(tasks)] for k in range(6)]
    return {
        "a": torch.randn(6, 3, generator=generator),
        "b": torch.randn(6, 5, generator=generator),
        "y": torch.randint(0, 2, (6,), generator=generator),
        "task": rows if len(tasks) > 1 else tasks,
    }


class Batches:
    """A loader of these batches, or of batches with these tasks; the same in every epoch."""

    def __init__(self, batches: Iterable[Any], seed: int = 0) -> None:
        self.all = [batch_of(each, seed + k) if isinstance(each, str) else each for k, each in enumerate(batches)]

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.all)


class TwoTasks(pl.LightningModule):
    """Two inputs, a shared trunk, two heads. Only the branches of the tasks of a batch run.

    Args:
        make: parameters -> optimizer.
        set_to_none: for `zero_grad`.
        norm: BatchNorm in each branch.
    """

    def __init__(self, make: Callable[[Any], Any] | None = None, set_to_none: bool = True, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = {"a": 3, "b": 5}
        for task, width in widths.items():
            layers = [nn.Linear(width, 4), *([nn.BatchNorm1d(4)] if norm else [])]
            self.add_module(f"in_{task}", nn.Sequential(*layers))
            self.add_module(f"out_{task}", nn.Linear(4, 2))
        self.trunk = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.make = make or (lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1))
        self.set_to_none = set_to_none

    def loss(self, batch: Any) -> Tensor:
        rows = batch["task"] if not isinstance(batch["task"], str) else [batch["task"]] * len(batch["y"])
        losses = []
        for task in sorted(set(rows)):
            mine = torch.tensor([row == task for row in rows])
            hidden = self.trunk(getattr(self, f"in_{task}")(batch[task][mine]))
            losses.append(nn.functional.cross_entropy(getattr(self, f"out_{task}")(hidden), batch["y"][mine]))
        return torch.stack(losses).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=self.set_to_none)


def branch(name: str) -> str:
    """The task that a parameter or buffer belongs to, "" for the shared part."""
    return name.split(".")[0].removeprefix("in_").removeprefix("out_") if name[:3] in ("in_", "out") else ""


def by_hand(
    model: TwoTasks, steps: Sequence[Sequence[tuple[str, int]]], clip: float = 0.0
) -> tuple[TwoTasks, torch.optim.Optimizer]:
    """What a run has to give: each step takes its batches and hides the gradients of absent tasks for good.

    Args:
        model: a fresh one.
        steps: for each step the batches of its window, as arguments of `batch_of`.
        clip: as Trainer(gradient_clip_val).
    """
    optimizer = model.make(model.parameters())
    for window in steps:
        optimizer.zero_grad()
        for tasks, seed in window:
            (model.loss(batch_of(tasks, seed)) / len(window)).backward()
        present = {task for tasks, _ in window for task in tasks}
        for name, parameter in model.named_parameters():
            if branch(name) and branch(name) not in present:
                parameter.grad = None
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model, optimizer
