"""Run by test_freezer.py in real processes: a loop without a Trainer, whole and resumed; findings as JSON of rank 0."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze import Freezer, GradualUnfreeze, LayerwiseLR

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
STAGES = ["6", ["3", "4"], ["0", "1"]]
EPOCHS, BATCHES, RATE = 4, 3, 0.05


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.LayerNorm if kind == "fabric fsdp2" else nn.BatchNorm1d
    return nn.Sequential(*[nn.Linear(6, 9), norm(9), nn.ReLU(), nn.Linear(9, 9), norm(9), nn.ReLU()], nn.Linear(9, 3))


def shard(model: nn.Module, mesh: Any) -> nn.Module:
    for place in (0, 3, 6):
        fully_shard(model[place], mesh=mesh["data_parallel"])  # type: ignore[index]
    return fully_shard(model, mesh=mesh["data_parallel"])


class Run:
    """Model, optimizer and scheduler of one kind, and how it saves and loads."""

    def __init__(self, kind: str) -> None:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        self.kind, self.fabric = kind, None
        self.model: nn.Module = network(kind)
        if kind.startswith("fabric"):
            sharded = ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)
            strategy = sharded if kind == "fabric fsdp2" else "ddp"
            self.fabric = Fabric(accelerator="cpu", devices=world, strategy=strategy)
            self.fabric.launch()
            self.model = self.fabric.setup_module(self.model)
            self.optimizer = self.fabric.setup_optimizers(torch.optim.AdamW(self.model.parameters(), lr=RATE))
        else:
            if kind == "ddp":
                dist.is_initialized() or dist.init_process_group("gloo")
                self.model = DistributedDataParallel(self.model)
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        trigger = {"every_n_train_steps": BATCHES + 1} if kind == "fabric ddp" else {}
        policies = [GradualUnfreeze(STAGES, warmup_steps=2, verbose=False, **trigger), LayerwiseLR(0.5)]
        self.freezer = Freezer(self.model, policies, [self.optimizer], [self.scheduler])

    def save(self, path: Path, epoch: int) -> None:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "epoch": epoch}
        parts["freezer"] = self.freezer  # last: `fabric.load` has to take it first all the same
        if self.fabric is not None:
            return self.fabric.save(path, parts)
        saved = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save(saved, path)
        return None

    def load(self, path: Path) -> int:
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        if self.fabric is not None:
            state = {**parts, "epoch": 0, "freezer": self.freezer}
            self.fabric.load(path, state)
            assert state["freezer"] is self.freezer
            if self.kind == "fabric fsdp2":  # which leaves what is neither module nor optimizer to the caller
                self.scheduler.load_state_dict(state["scheduler"])
            return int(state["epoch"])
        saved = torch.load(path)
        self.freezer.load_state_dict(saved["freezer"])
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        return int(saved["epoch"])


def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rank = dist.get_rank() if dist.is_initialized() else 0
    generator = torch.Generator().manual_seed(100 * epoch + rank)
    for _ in range(BATCHES):
        yield torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def whole(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {name.rpartition("module.")[2]: tensor.detach() for name, tensor in module.state_dict().items()}
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).double().clone() for k, v in found.items()}


def apart(tensors: dict[str, torch.Tensor]) -> float:
    if not dist.is_initialized():
        return 0.0
    mine = torch.cat([tensor.flatten() for tensor in tensors.values()])
    theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(theirs, mine)
    return max(float((one - mine).abs().max()) for one in theirs)


def train(run: Run, folder: Path, start: int, report: dict[str, list[Any]] | None) -> dict[str, torch.Tensor]:
    step = start * BATCHES
    with run.freezer as freezer:
        for epoch in range(start, EPOCHS):
            before = whole(run.model)
            freezer.epoch(epoch)
            frozen = {name for name, p in freezer.module.named_parameters() if not p.requires_grad}
            for inputs, targets in batches(epoch):
                run.optimizer.zero_grad()
                loss = nn.functional.cross_entropy(freezer.module(inputs), targets)
                run.fabric.backward(loss) if run.fabric is not None else loss.backward()
                run.optimizer.step()
                step += 1
                frozen &= {name for name, p in freezer.module.named_parameters() if not p.requires_grad}
                freezer.step(step)
            run.scheduler.step()
            after = whole(run.model)
            if report is not None:
                _note(report, run, before, after, {name.rpartition("module.")[2] for name in frozen})
                run.save(folder / f"{run.kind}-{epoch}", epoch)
        return whole(run.model)


def _note(report: dict[str, list[Any]], run: Run, before: Any, after: Any, frozen: set[str]) -> None:
    # parameters: DDP shares the statistics of BatchNorm at the start of a forward pass, not at its end
    parameters = {name.rpartition("module.")[2] for name, _ in run.model.named_parameters()}
    report["apart"].append(apart({name: after[name] for name in sorted(parameters)}))
    report["frozen moved"].append([name for name in frozen if not torch.equal(before[name], after[name])])
    report["frozen"].append(len(frozen))
    report["rates"].append([group["lr"] for group in run.optimizer.param_groups])
    wrappers = [m for m in run.model.modules() if isinstance(m, DistributedDataParallel)]
    report["reduced"].append(sum(w._get_ddp_logging_data()["total_parameter_size_bytes"] for w in wrappers))
    report["trainable"].append(sum(p.nbytes for p in run.model.parameters() if p.requires_grad))


def main(folder: str, *kinds: str) -> None:
    for kind in kinds:
        names = ("apart", "frozen moved", "frozen", "rates", "reduced", "trainable")
        report: dict[str, Any] = {name: [] for name in names}
        run = Run(kind)
        flags = [p.requires_grad for p in run.model.parameters()]
        final = train(run, Path(folder), 0, report)
        report["restored"] = all(p.requires_grad for p in run.model.parameters()) and not all(flags)
        report["resumed"] = []
        for epoch in range(EPOCHS - 1):
            again = Run(kind)
            start = again.load(Path(folder, f"{kind}-{epoch}")) + 1
            same = train(again, Path(folder), start, None)
            report["resumed"].append(all(torch.equal(final[name], same[name]) for name in final))
        if not dist.is_initialized() or dist.get_rank() == 0:
            Path(folder, f"{kind}.json").write_text(json.dumps(report))
