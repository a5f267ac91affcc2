"""What only a GPU can show: NCCL, SyncBatchNorm (torch has none for the CPU), state moved between host and device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from ddp_worker import Net, gradual
from helpers import trainer
from lightning.pytorch.strategies import FSDPStrategy
from processes import launch
from torch import nn

from lightning_freeze import BatchNormEval, FreezeLayers

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
GPUS = torch.cuda.device_count()
DATA = torch.utils.data.TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,)))


@pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")
def test_state_on_the_host_comes_back_to_the_device() -> None:
    model = Net()
    running = trainer([FreezeLayers("model.3", 1, 2, optimizer_state="cpu")], 3, accelerator="gpu")
    running.fit(model, torch.utils.data.DataLoader(DATA, batch_size=16))
    state = running.optimizers[0].state[model.model[3].weight]
    assert state["exp_avg"].device == model.model[3].weight.device
    assert int(state["step"]) == 8  # two epochs of four steps


@pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")
def test_sync_batchnorm_put_in_after_setup_is_held_and_stage_names_stay() -> None:
    model = Net()
    callbacks = [*gradual(), BatchNormEval(when="frozen")]
    running = trainer(callbacks, 3, accelerator="gpu", strategy="ddp", sync_batchnorm=True)
    before = model.model[1].running_mean.clone()
    running.fit(model, torch.utils.data.DataLoader(DATA, batch_size=16))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(model.model[1], nn.BatchNorm1d)  # Lightning puts the plain layers back
    assert not torch.equal(before, model.model[1].running_mean.cpu())


@pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")
def test_fsdp_with_original_parameters_freezes_and_unfreezes() -> None:
    model, seen = Net(), []

    class Seen(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append({name: value.detach().cpu().clone() for name, value in pl_module.named_parameters()})

    strategy = FSDPStrategy(use_orig_params=True)
    running = trainer([FreezeLayers("model.3", stop=2), Seen()], 4, accelerator="gpu", strategy=strategy)
    running.fit(model, torch.utils.data.DataLoader(DATA, batch_size=16))
    weights = [next(value for name, value in epoch.items() if name.endswith("3.weight")) for epoch in seen]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[3])


@pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("case", ["plain", "metric", "PowerSGD", "sync_batchnorm"])
def test_replicas_on_two_gpus_stay_equal(case: str, tmp_path: Path) -> None:
    launch("ddp_worker.py", tmp_path, case, ACCELERATOR="gpu")
    report = json.loads((tmp_path / f"{case}.json").read_text())
    assert set(report["apart"]) == {0.0}
    assert report["reduced"] == report["trainable"]
