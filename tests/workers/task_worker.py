"""Run by test_task_ddp.py in two processes whose tasks differ: after every batch, how far the ranks are apart."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from branches import TASKS, Batches, TwoTasks
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lightning_freeze import FreezeError, FreezeLayers, LayerAdaptiveLR, ProgressiveFreeze, RotatingUnfreeze, TaskFreeze

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
EPOCHS = 2
STAGES = [["out_a", "out_b"], "trunk", ["in_a", "in_b"]]
SCHEDULES = {  # the tasks of each batch, by rank
    "differ": (["a", "b", "b", "a", "ab", "a"], ["b", "b", "a", "a", "b", "ab"]),
    # only an earlier batch of a window, on one rank, uses the branch
    "early": (["a", "b", "b", "b", "ab", "b"], ["b", "b", "b", "a", "b", "b"]),
    "same": (["a", "b", "b", "a", "ab", "b"], ["a", "b", "b", "a", "ab", "b"]),
}


class Manual(TwoTasks):
    """Two batches to an update, by hand; each branch and the trunk have optimizers of their own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad(set_to_none=self.set_to_none)

    def configure_optimizers(self) -> Any:
        heads = [*self.out_a.parameters(), *self.out_b.parameters()]
        rest = [*self.in_a.parameters(), *self.in_b.parameters(), *self.trunk.parameters()]
        return [self.make(heads), self.make(rest)]


def momentum(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


# what to run: schedule, model, options of the Trainer, further callbacks
CASES: dict[str, Any] = {
    "plain": lambda: ("differ", TwoTasks(), {}, []),
    "zeroed": lambda: ("differ", TwoTasks(momentum, set_to_none=False), {}, []),
    "accumulated": lambda: ("early", TwoTasks(momentum), {"accumulate_grad_batches": 2}, []),
    "accumulated, zeroed": lambda: (
        "early",
        TwoTasks(momentum, set_to_none=False),
        {"accumulate_grad_batches": 2},
        [],
    ),
    "views": lambda: ("differ", TwoTasks(momentum), {"strategy": DDPStrategy(gradient_as_bucket_view=True)}, []),
    "views, accumulated, zeroed": lambda: (
        "early",
        TwoTasks(momentum, set_to_none=False),
        {"strategy": DDPStrategy(gradient_as_bucket_view=True), "accumulate_grad_batches": 2},
        [],
    ),
    "views, accumulated": lambda: (
        "early",
        TwoTasks(momentum),
        {"strategy": DDPStrategy(gradient_as_bucket_view=True), "accumulate_grad_batches": 2},
        [],
    ),
    "clipped": lambda: ("differ", TwoTasks(), {"gradient_clip_val": 0.3}, []),
    "manual": lambda: ("early", Manual(make=momentum, set_to_none=False), {}, []),
    "frozen beside": lambda: ("differ", TwoTasks(), {}, [FreezeLayers("trunk", 1, 2)]),
    "rotating beside": lambda: (
        "differ",
        TwoTasks(momentum),
        {},
        [
            RotatingUnfreeze(
                [["out_a", "out_b"], "in_a", "in_b.0.bias"], always="trunk", every_n_train_steps=2, verbose=False
            )
        ],
    ),
    "progressive beside": lambda: (
        "differ",
        TwoTasks(momentum),
        {"max_epochs": 4},
        [ProgressiveFreeze(STAGES, (0.0, 1.0), metric="grad_norm", percentile=100, verbose=False)],
    ),
    "adaptive beside": lambda: ("differ", TwoTasks(), {}, [LayerAdaptiveLR(max_factor=2.0)]),
    "same": lambda: ("same", TwoTasks(), {}, []),
    "static graph": lambda: ("differ", TwoTasks(), {"strategy": DDPStrategy(static_graph=True)}, []),
    "sharded": lambda: (
        "differ",
        TwoTasks(),
        {"strategy": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)},
        [],
    ),
}


class Watch(pl.Callback):
    def __init__(self) -> None:
        self.apart: list[float] = []
        self.training: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        mine = torch.cat([tensor.detach().double().flatten() for tensor in module.parameters()])
        self.training.append(sum(p.requires_grad for p in module.parameters()))
        theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(theirs, mine)
        self.apart.append(max(float((one - mine).abs().max()) for one in theirs))

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.unused = trainer.strategy._ddp_kwargs.get("find_unused_parameters")


def main(folder: str, *cases: str) -> None:
    for case in cases:
        schedule, model, options, callbacks = CASES[case]()
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        defaults = {"accelerator": "cpu", "strategy": "ddp", "devices": 2, "max_epochs": EPOCHS}
        watch = Watch()
        trainer = pl.Trainer(
            callbacks=[TaskFreeze(TASKS, verbose=False), *callbacks, watch],
            default_root_dir=folder,
            use_distributed_sampler=False,
            **defaults | quiet | options,
        )
        rank = trainer.global_rank
        try:
            trainer.fit(model, Batches(SCHEDULES[schedule][rank], seed=100 * rank))
        except FreezeError as error:
            Path(folder, f"{case}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        else:
            if trainer.is_global_zero:
                found = {
                    "apart": watch.apart,
                    "training": watch.training,
                    "unused": watch.unused,
                    "weights": model.state_dict(),
                }
                torch.save(found, Path(folder, f"{case}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
