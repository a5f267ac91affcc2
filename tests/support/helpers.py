"""A network with everything that freezing must get right, tiny, and a Trainer that says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

BEFORE_2_6 = tuple(map(int, pl.__version__.split(".")[:2])) < (2, 6)  # of Lightning
# Arguments of `fit` for a checkpoint that we trust; Lightning has the argument since 2.6.
TRUSTED: dict[str, Any] = {} if BEFORE_2_6 else {"weights_only": False}
# FSDP2 on the CPU, since torch 2.7
SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")
STAGES = ["head", "mid", "stem"]


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))


class Net(pl.LightningModule):
    """stem -> mid -> head, with BatchNorm and Dropout; logs "val", the loss of validation.

    Args:
        optimizers: module -> what `configure_optimizers` returns; None: SGD with momentum.
        metrics: the values that "val" takes in turn, in place of the loss.
    """

    def __init__(self, optimizers: Callable[[Any], Any] | None = None, metrics: Sequence[float] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mid, self.head = block(), block(), nn.Linear(4, 3)
        self.optimizers_of = optimizers
        self.metrics = iter(metrics)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.mid(self.stem(inputs)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val", next(self.metrics, loss) if not self.trainer.sanity_checking else loss)

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        if self.optimizers_of is None:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return self.optimizers_of(self)


class Batches:
    """A dataloader that warns of nothing: the same batches each time."""

    def __init__(self, count: int = 2, size: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        self.all = [
            (torch.randn(size, 4, generator=generator), torch.randint(0, 3, (size,), generator=generator))
            for _ in range(count)
        ]

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.all)


def trainer(callbacks: Sequence[Any] = (), epochs: int = 3, **options: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"max_epochs": epochs, "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
    return pl.Trainer(callbacks=list(callbacks), **quiet | defaults | options)


def fit(
    model: pl.LightningModule, callbacks: Sequence[Any] = (), epochs: int = 3, steps: int = 2, **options: Any
) -> pl.Trainer:
    """Train on `steps` batches an epoch, and validate on one."""
    running = trainer(callbacks, epochs, **options)
    running.fit(model, Batches(steps), Batches(1))
    return running


class Spy(pl.Callback):
    """Calls a function with (trainer, module) at one hook."""

    def __init__(self, hook: str, function: Callable[[Any, Any], Any]) -> None:
        self.seen: list[Any] = []
        setattr(self, hook, lambda trainer, module, *_: self.seen.append(function(trainer, module)))


def names_in(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[str]:
    """Names of the parameters that the optimizers hold, by identity, in the optimizers' order."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(p)] for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def trainable(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def stages_training(_: Any, module: nn.Module) -> str:
    """The first letters of the stages with a trainable parameter."""
    return "".join(sorted({name[0] for name in trainable(module)}))


def each_epoch() -> Spy:
    return Spy("on_train_epoch_end", stages_training)


class NeverTrains(Net):
    """For what has to be refused before training."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        raise AssertionError("this run must not begin")

    validation_step = training_step
