"""Run by test_sharded.py in real processes: FSDP2, resumed from every checkpoint of a run; findings as JSON."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from resuming import StatefulLoader
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from lightning_freeze import (
    AnchorWeights,
    FreezeLayers,
    GradualUnfreeze,
    LayerAdaptiveLR,
    LayerwiseLR,
    ProgressiveFreeze,
)

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
STAGES = ["model.6", ["model.3", "model.4"], ["model.0", "model.1"]]
EPOCHS = 4


class Net(pl.LightningModule):
    def __init__(self, optimizer: str = "AdamW", shard: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [
            nn.Linear(6, 9),
            nn.LayerNorm(9),
            nn.ReLU(),
            nn.Linear(9, 9),
            nn.LayerNorm(9),
            nn.ReLU(),
            nn.Linear(9, 3),
        ]
        self.model = nn.Sequential(*layers)  # odd sizes: the ranks' parts differ
        self.optimizer, self.shard = optimizer, shard

    def configure_model(self) -> None:
        if self.shard and not isinstance(self.model, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            for place in (0, 3, 6):
                fully_shard(self.model[place], mesh=mesh)
            fully_shard(self.model, mesh=mesh)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.log("val", (loss * 20).round() / 20)

    def configure_optimizers(self) -> Any:
        options = {"momentum": 0.9} if self.optimizer == "SGD" else {}
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), lr=0.05, **options)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class RankLoader(StatefulLoader):
    """Each rank has its part of every batch."""

    def __iter__(self) -> Any:
        rank, world = int(os.environ.get("LOCAL_RANK", 0)), dist.get_world_size() if dist.is_initialized() else 1
        for inputs, targets in super().__iter__():
            yield inputs[rank::world], targets[rank::world]


class Saver(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []
        self.trainable: list[int] = []

    def _save(self, trainer: Any, kind: str) -> None:
        path = self.folder / f"{kind}-{trainer.current_epoch}-{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        self.paths.append(path)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trainable.append(sum(parameter.requires_grad for parameter in pl_module.parameters()))
        if batch_idx == 2:
            self._save(trainer, "step")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.strategy = trainer.strategy
        self._save(trainer, "epoch")

    def teardown(self, trainer: Any, *_: Any, **__: Any) -> None:
        trainer.save_checkpoint(self.folder / "after the fit")


class Start(pl.Callback):
    """What a resumed run begins with."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.found = copy.deepcopy(everything(trainer))  # on one process, record() is the live state


def gradual(**options: Any) -> Any:
    return [GradualUnfreeze(STAGES, verbose=False, **options)]


# callbacks, the optimizer, whether each rank writes its own part of a checkpoint
CASES: dict[str, tuple[Any, str, bool]] = {
    "rates": (lambda: [*gradual(warmup_steps=6), LayerwiseLR(0.5)], "AdamW", True),
    "rates, one file": (lambda: [*gradual(warmup_steps=6), LayerwiseLR(0.5)], "AdamW", False),
    "steps": (lambda: gradual(every_n_train_steps=5), "SGD", True),
    "refreeze": (lambda: [FreezeLayers("model.3", 1, 3), FreezeLayers("model.0", stop=2)], "AdamW", True),
    "refreeze, one file": (lambda: [FreezeLayers("model.3", 1, 3), FreezeLayers("model.0", stop=2)], "AdamW", False),
    "host": (lambda: [FreezeLayers("model.3", 2, 11, "step", optimizer_state="cpu")], "AdamW", True),
    "construction": (lambda: [FreezeLayers("model.3", 1, 3), FreezeLayers("model.0", stop=2)], "Adagrad", True),
    "adaptive": (
        lambda: [
            ProgressiveFreeze(STAGES[::-1], (0.0, 1.0), metric="grad_norm", percentile=100, verbose=False),
            *(LayerAdaptiveLR(kind, max_factor=2.0) for kind in ("moment_ratio", "trust_ratio")),
        ],
        "AdamW",
        True,
    ),
    "anchored": (lambda: [*gradual(), AnchorWeights(2.0, ["*", "!model.3.bias"], decay=0.5)], "AdamW", True),
    "thaw": (lambda: gradual(thaw=True), "AdamW", True),
    "best": (lambda: gradual(monitor="val", mode="max", patience=1, restore_best=True), "AdamW", True),
}


def whole(tensor: Any) -> Any:
    """A copy: a whole tensor of a single process is its only part."""
    return tensor.full_tensor().clone() if isinstance(tensor, DTensor) else copy.deepcopy(tensor)


def fit(case: str, folder: Path, ckpt_path: Any = None, extra: Any = (), shard: bool = True) -> Any:
    callbacks, optimizer, parts = CASES[case]
    size = int(os.environ["PROCESSES"])
    strategy = ModelParallelStrategy(size, 1, save_distributed_checkpoint=parts) if shard else "ddp"
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pl.Trainer(
        callbacks=[*callbacks(), *extra], default_root_dir=folder, strategy=strategy, devices=size, accelerator="cpu",
        max_epochs=EPOCHS, num_sanity_val_steps=0, use_distributed_sampler=False, **quiet,
    )  # fmt: skip
    validation = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(StatefulLoader().inputs, StatefulLoader().targets), batch_size=8
    )
    module = Net(optimizer, shard)
    if case == "thaw":
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name.startswith(STAGES[0]))
    trainer.fit(module, RankLoader(), validation, ckpt_path=ckpt_path)
    return trainer


def everything(trainer: Any) -> dict[str, Any]:
    """All that a run ends with, whole and flat."""
    module = trainer.lightning_module
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()  # validation leaves the root's parameters whole
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = {name: whole(parameter.detach()) for name, parameter in module.named_parameters()}
    optimizer = trainer.optimizers[0]
    for parameter in module.parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{names[id(parameter)]}/{key}"] = whole(value)
    for place, group in enumerate(optimizer.param_groups):
        members = [names[id(parameter)] for parameter in group["params"]]
        found |= {f"group {place}/{key}": value for key, value in {**group, "params": members, "betas": 0}.items()}
    checkpoint: dict[str, Any] = {}
    trainer.callbacks[0].on_save_checkpoint(trainer, module, checkpoint)
    record = checkpoint["lightning_freeze"]
    leaves = torch.utils._pytree.tree_flatten_with_path({key: record[key] for key in ("trainable", "optimizers")})[0]
    found |= {torch.utils._pytree.keystr(path): leaf for path, leaf in leaves}
    found["policies"] = str([policy["state"] for policy in record["policies"]])
    found["scheduler"] = str(trainer.lr_scheduler_configs[0].scheduler.state_dict())
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())
    return [
        key
        for key, value in one.items()
        if not (torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key])
    ]


def resume(case: str, paths: list[Path], processes: str) -> tuple[list[Any], dict[str, Any]]:
    """The end of a run resumed from each checkpoint; what each began with is written down."""
    ends, starts = [], {}
    for path in paths:
        start = Start()
        ends.append(everything(fit(case, path.parent, ckpt_path=path, extra=[start])))
        starts[path.name] = start.found
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        torch.save(starts, paths[0].parent.parent / f"{case}-{processes}.pt")
    return ends, starts


def main(folder: str, processes: str, *cases: str) -> None:
    os.environ["PROCESSES"] = processes
    for case in cases:
        place = Path(folder, case)
        if place.exists():  # another number of processes wrote it
            resume(case, sorted(place.glob("*.ckpt")), processes)
            continue
        saver = Saver(place)
        expected = everything(fit(case, place, extra=[saver]))
        shadowed = {"optimizer_state", "load_checkpoint"} & set(vars(saver.strategy))
        replicated = everything(fit(case, place, shard=False))
        apart = max(float((expected[name] - replicated[name]).abs().max()) for name, _ in Net().named_parameters())
        ends, _ = resume(case, sorted(saver.paths), processes)
        broken = [different[-6:] for end in ends if (different := differences(expected, end))]
        report = {
            "broken": broken,
            "apart": apart,
            "shadowed": sorted(shadowed),
            "trainable": saver.trainable,
            "checkpoints": len(saver.paths),
        }
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            Path(folder, f"{case}.json").write_text(json.dumps(report))
