"""Figures about one way of fine-tuning: what is right about it, and what it costs."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peers_work import EPOCHS, FACTORS, LR, PROBES, SCHEDULERS, STEPS, Net, Peer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader, Subset, TensorDataset

Figures = dict[str, Any]
# Our own checkpoint; Lightning has the argument since 2.6.
TRUSTED: Figures = {"weights_only": False} if "weights_only" in inspect.signature(Trainer.fit).parameters else {}


class Watch(Callback):
    """Everything that is measured of a run; its epochs count on over several fits."""

    def __init__(self, net: Net) -> None:
        self.epoch, self.net = 0, net
        self.rates: list[list[float | None]] = []  # at each step, of the probes that train
        self.step_ms: list[list[float]] = []  # by epoch
        self.saved: list[int] = []  # bytes for backward, by epoch
        self.sent: list[int] = []  # bytes in the reducer, by epoch
        self.dropout_on = False
        self.norms = {name: value.detach().clone() for name, value in self._norm_tensors().items()}
        self.drift = {"statistics": 0.0, "weights": 0.0}

    def _norm_tensors(self) -> dict[str, Tensor]:
        norms = [m for m in self.net.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        kinds = ("running_mean", "running_var", "weight", "bias")
        return {f"{kind} {place}": getattr(norm, kind) for place, norm in enumerate(norms) for kind in kinds}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.step_ms.append([])
            self.dropout_on |= self.epoch < 2 and self.net.backbone.dropout.training
        names = dict(self.net.named_parameters())
        lrs = {id(p): float(group["lr"]) for group in trainer.optimizers[0].param_groups for p in group["params"]}
        self.rates.append([lrs.get(id(names[name])) if names[name].requires_grad else None for name in PROBES])
        self.began = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.step_ms[-1].append(1e3 * (time.process_time() - self.began))

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.epoch == 1:  # the backbone has been frozen up to here
            for name, value in self._norm_tensors().items():
                kind = "statistics" if "running" in name else "weights"
                self.drift[kind] = max(self.drift[kind], float((value - self.norms[name]).abs().max()))
        if dist.is_initialized():
            self.sent.append(int(trainer.strategy.model._get_ddp_logging_data()["total_parameter_size_bytes"]))  # type: ignore[union-attr]
        self.epoch += 1


class SavedBytes(Callback):
    """Bytes that autograd keeps for the backward of the second step of each epoch, parameters and buffers aside."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers(), batch[0])}
            seen: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    seen[storage.data_ptr()] = storage.nbytes()
                return tensor

            with saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = module.training_step(batch, batch_idx)
            assert loss is not None
            self.watch.saved.append(sum(seen.values()))


def loaders(size: int = 32, batch: int = 4, ranks: int = 1) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Random images `[batch, 3, size, size]`, in the same order every time, and one batch to validate on."""
    generator = torch.Generator().manual_seed(0)
    count = STEPS * batch * ranks
    labels = torch.randint(0, 10, (count,), generator=generator)
    data = TensorDataset(torch.randn(count, 3, size, size, generator=generator), labels)
    return DataLoader(data, batch), DataLoader(Subset(data, range(batch)), batch)


def run(
    peer: Peer,
    root: Path,
    scheduler: str = "StepLR",
    resume: int | None = None,
    extra: Callable[[Watch], list[Any]] = lambda watch: [],
    **options: Any,
) -> Watch:
    """One run of all epochs; with `resume`, from the checkpoint that another wrote in `root` after that epoch."""
    torch.manual_seed(0)
    model = peer.net(scheduler)
    watch = Watch(model)
    phase = iter(range(EPOCHS))
    shape = {name: options.pop(name) for name in ("size", "batch", "ranks") if name in options}
    first = 0 if resume is None or peer.fits is None else resume // 2

    def fit(epochs: int) -> None:
        place = next(phase)
        folder = root / str(place)
        if place < first:
            return
        found = None
        if resume is not None and place == first:
            (found,) = folder.glob(f"checkpoints/epoch={resume - 2 * first}-*.ckpt")
        callbacks = peer.callbacks()
        if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
            callbacks.append(ModelCheckpoint(save_top_k=-1))
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[*callbacks, *extra(watch), watch],
            default_root_dir=folder if resume is None else root / "resumed" / str(place),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )
        with redirect_stdout(StringIO()):
            trainer.fit(model, *loaders(**shape), ckpt_path=found, **TRUSTED)

    if peer.fits:
        peer.fits(model, fit)
    else:
        fit(EPOCHS)
    return watch


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest absolute difference of two sets of tensors."""
    return max(float((value.double() - other[name].double()).abs().max()) for name, value in one.items())


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def resumed_apart(peer: Peer) -> float | str:
    """Weights and buffers of a run that was resumed, before and after an unfreezing, against one that never stopped."""
    with TemporaryDirectory() as folder:
        whole = run(peer, Path(folder)).net.state_dict()
        try:
            return max(apart(whole, run(peer, Path(folder), resume=epoch).net.state_dict()) for epoch in (1, 2))
        except Exception as error:
            return _said(error)


def rate_error(peer: Peer, scheduler: str) -> float | str:
    """The largest relative error of a rate at any step, against factor x the schedule of a run without stages."""
    parameter = nn.Parameter(torch.zeros(()))
    reference = torch.optim.AdamW([parameter], lr=LR)
    stepper, expected = SCHEDULERS[scheduler](reference), []
    for _ in range(EPOCHS * STEPS):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        stepper.step()
    with TemporaryDirectory() as folder:
        try:
            rates = run(peer, Path(folder), scheduler).rates
        except Exception as error:
            return _said(error)
    return max(
        abs(rate / (factor * lr) - 1)
        for lr, found in zip(expected, rates, strict=True)
        for factor, rate in zip(FACTORS, found, strict=True)
        if rate is not None
    )


def costs(peers: list[Peer], rounds: int) -> dict[str, Figures]:
    """CPU ms per step and bytes saved for backward, of each stage of two epochs. The peers take turns."""
    found: dict[str, list[Watch]] = {peer.name: [] for peer in peers}
    saved: dict[str, list[int]] = {}
    for _ in range(rounds):
        for peer in peers:
            with TemporaryDirectory() as folder:
                found[peer.name].append(run(peer, Path(folder), size=64, batch=8))
    for peer in peers:  # apart from the clock: watching what is saved takes time
        with TemporaryDirectory() as folder:
            saved[peer.name] = run(peer, Path(folder), extra=lambda w: [SavedBytes(w)], size=64, batch=8).saved
    return {
        name: {
            "step_ms": [
                statistics.median(
                    ms for watch in watches for epoch in watch.step_ms[2 * k : 2 * k + 2] for ms in epoch[1:]
                )
                for k in range(3)
            ],
            "saved_bytes": [saved[name][2 * k + 1] for k in range(3)],
        }
        for name, watches in found.items()
    }


def lines(peer: Peer) -> int:
    """Lines that a user writes, without blank ones."""
    return sum(bool(line.strip()) for part in peer.written for line in inspect.getsource(part).splitlines())


def ranks(peer: Peer) -> Figures:
    """Run in each of two processes: how far the parameters are apart in the end, and bytes sent in each stage."""
    with TemporaryDirectory() as folder:
        try:
            watch = run(peer, Path(folder), strategy="ddp", devices=2, ranks=2)
        except Exception as error:
            return {"error": _said(error)}
    mine = torch.cat([parameter.detach().flatten() for parameter in watch.net.parameters()])
    theirs = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(theirs, mine)
    return {"apart": float((theirs[0] - theirs[1]).abs().max()), "sent_bytes": watch.sent[::2]}


def correctness(peer: Peer) -> Figures:
    """All that one process can tell."""
    with TemporaryDirectory() as folder:
        watch = run(peer, Path(folder))
    return {
        "resumed_apart": resumed_apart(peer),
        "norm_drift": watch.drift,
        "dropout_on": watch.dropout_on,
        "rate_errors": {scheduler: rate_error(peer, scheduler) for scheduler in SCHEDULERS},
        "lines": lines(peer),
    }
