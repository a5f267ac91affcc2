"""Run by test_ddp.py in real processes: one case of training under DDP, its findings as JSON from rank 0."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.overrides.distributed import _register_ddp_comm_hook
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze import BatchNormEval, FreezeError, FreezeLayers, GradualUnfreeze, LayerwiseLR

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
STAGES = ["model.6", ["model.3", "model.4"], ["model.0", "model.1"]]


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(
            *[nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()],
            *[nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()],
            nn.Linear(8, 3),
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", torch.tensor(float(self.global_rank)))  # each rank sees another value; rank 0's counts

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class TwoParts(Net):
    """As BackboneFinetuning wants it: a `backbone`, and an optimizer of what trains at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = self.model[:6], self.model[6]
        del self.model

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([parameter for parameter in self.parameters() if parameter.requires_grad], lr=0.05)


class FrozenBefore(Net):
    """Frozen but for the head before the fit; the optimizer has the head only."""

    def __init__(self) -> None:
        super().__init__()
        self.model[:6].requires_grad_(False)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class ManualNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Hooked(DDPStrategy):
    """Lightning registers communication hooks on CUDA only; torch takes them on gloo as well."""

    def _register_ddp_hooks(self) -> None:
        _register_ddp_comm_hook(self.model, self._ddp_comm_state, self._ddp_comm_hook, self._ddp_comm_wrapper)


SEEN_BY_HOOK: list[int] = []


def counting(hook: Any) -> Any:
    def counted(state, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
        SEEN_BY_HOOK.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return hook(state, bucket)

    return counted


def power_sgd() -> DDPStrategy:
    state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.1)
    return Hooked(ddp_comm_state=state, ddp_comm_hook=powerSGD_hook.powerSGD_hook, ddp_comm_wrapper=counting)


class Watch(pl.Callback):
    """After every epoch: how far the ranks are apart, and what the reducer sends."""

    def __init__(self, case: str, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.apart: list[float] = []
        self.reduced: list[int] = []
        self.trainable: list[int] = []
        self.weights: list[str] = []
        self.trainable_at: list[int] = []
        self.hooked: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.trainable_at.append(sum(p.requires_grad for p in module.parameters()))

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        # torch does not share BatchNorm buffers between ranks under Lightning's manual optimization
        tensors = module.state_dict().values() if module.automatic_optimization else module.parameters()
        mine = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
        theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(theirs, mine)
        self.apart.append(max(float((one - mine).abs().max()) for one in theirs))
        wrapper = trainer.strategy.model
        assert isinstance(wrapper, DistributedDataParallel)
        self.reduced.append(int(wrapper._get_ddp_logging_data()["total_parameter_size_bytes"]))
        self.hooked.append(sum(SEEN_BY_HOOK) // trainer.num_training_batches)
        SEEN_BY_HOOK.clear()
        self.trainable.append(sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad))
        self.weights.append(hashlib.sha256(mine.cpu().numpy().tobytes()).hexdigest())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if trainer.is_global_zero:
            names = ("hooked", "apart", "reduced", "trainable", "weights", "trainable_at")
            report = {name: getattr(self, name) for name in names}
            gc.collect()
            report["wrappers"] = sum(type(thing) is DistributedDataParallel for thing in gc.get_objects())
            (self.folder / f"{self.case}.json").write_text(json.dumps(report))


def gradual(**options: Any) -> Any:
    return [GradualUnfreeze(STAGES, verbose=False, **options)]


CASES: dict[str, Any] = {
    "plain": lambda: (gradual(), {}),
    "rates": lambda: ([*gradual(warmup_steps=3), LayerwiseLR(0.5), BatchNormEval()], {}),
    "refreeze": lambda: ([FreezeLayers("model.3", 1, 3), FreezeLayers("model.0", stop=2, optimizer_state="cpu")], {}),
    "steps": lambda: (gradual(every_n_train_steps=3), {"accumulate_grad_batches": 2}),
    "metric": lambda: (gradual(monitor="val", patience=1), {}),
    "best": lambda: (gradual(monitor="val", patience=1, restore_best=True), {}),
    "unused": lambda: (gradual(), {"strategy": "ddp_find_unused_parameters_true"}),
    "views": lambda: (gradual(), {"strategy": DDPStrategy(gradient_as_bucket_view=True)}),
    "static": lambda: (gradual(), {"strategy": DDPStrategy(static_graph=True)}),
    "sync_batchnorm": lambda: ([*gradual(), BatchNormEval(when="frozen")], {"sync_batchnorm": True}),
    "fp16 hook": lambda: (
        gradual(),
        {"strategy": Hooked(ddp_comm_hook=default_hooks.fp16_compress_hook, ddp_comm_wrapper=counting)},
    ),
    "PowerSGD": lambda: (gradual(), {"strategy": power_sgd()}),
    "four": lambda: (gradual(monitor="val", patience=1), {"devices": 4, "max_epochs": 4}),
    "bf16": lambda: (gradual(), {"precision": "bf16-mixed"}),
    "fork": lambda: (gradual(), {"strategy": "ddp_fork"}),
    "spawn": lambda: (gradual(), {"strategy": "ddp_spawn"}),
    "manual": lambda: (gradual(), {}),
    "many": lambda: (
        [FreezeLayers("model.3", k, k + 1) for k in range(0, 100, 2)],
        {"max_epochs": 100, "limit_train_batches": 1},
    ),
    "lightning's own": lambda: ([BackboneFinetuning(2, backbone_initial_ratio_lr=0.1, should_align=False)], {}),
    "thaw": lambda: (gradual(thaw=True, monitor="val", patience=1, restore_best=True), {}),
    "disagreement": lambda: ([FreezeLayers(f"model.{3 * int(os.environ['LOCAL_RANK'])}", 2, 4)], {}),
}


def main(folder: str, *cases: str) -> None:
    """Cases one after the other in the same processes: starting them takes longer than training."""
    for case in cases:
        callbacks, options = CASES[case]()
        data = torch.utils.data.TensorDataset(
            torch.randn(64, 6, generator=torch.Generator().manual_seed(1)),
            torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(2)),
        )
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        accelerator = os.environ.get("ACCELERATOR", "cpu")
        defaults = {
            "accelerator": accelerator,
            "strategy": "ddp",
            "devices": 2,
            "max_epochs": 5,
            "num_sanity_val_steps": 0,
        }
        pl.seed_everything(0, verbose=False)
        model = {"manual": ManualNet, "lightning's own": TwoParts, "thaw": FrozenBefore}.get(case, Net)()
        callbacks = [*callbacks, Watch(case, Path(folder))]
        trainer = pl.Trainer(callbacks=callbacks, default_root_dir=folder, **defaults | quiet | options)
        loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
        try:
            trainer.fit(model, loader, torch.utils.data.DataLoader(data, batch_size=32))
        except FreezeError as error:
            Path(folder, f"{case}-{trainer.global_rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
