"""run(0..n) equals run, save, load, run: bit for bit, from every checkpoint of a run."""

from __future__ import annotations

import contextlib
import functools
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from helpers import BEFORE_2_6
from resuming import EPOCHS, STAGES, Net, StatefulLoader, differences, everything

from lightning_freeze import (
    BatchNormEval,
    FreezeLayers,
    GradualUnfreeze,
    LayerAdaptiveLR,
    LayerwiseLR,
    ProgressiveFreeze,
    ResumeError,
    RotatingUnfreeze,
    StageSchedule,
)

# As `Trainer.fit(weights_only=True)` of newer Lightning: nothing but plain types and tensors may be in a checkpoint.
LOAD_PLAIN_TYPES_ONLY = mock.patch("torch.load", functools.partial(torch.load, weights_only=True))


class SaveEverywhere(pl.Callback):
    """By hand after every step, at the end of every epoch and of every validation.

    Left out is what Lightning itself cannot resume: the inside of an accumulation window (its gradients are lost)
    and, where a metric matters, a step that a validation follows (the resumed run skips that validation).
    """

    def __init__(self, folder: Path, metric: bool) -> None:
        self.folder = folder
        self.metric = metric
        self.paths: list[Path] = []

    def _save(self, trainer: Any, kind: str) -> None:
        path = self.folder / f"{kind}-{trainer.current_epoch}-{trainer.global_step}-{len(self.paths)}.ckpt"
        trainer.save_checkpoint(path)
        self.paths.append(path)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        validates = (batch_idx + 1) % trainer.val_check_batch == 0
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not (self.metric and validates):
            self._save(trainer, "step")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self._save(trainer, "epoch")

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._save(trainer, "validation")


def fit(
    model: Net, callbacks: list[Any], folder: Path, ckpt_path: Any = None, safe_load: bool = False, **options: Any
) -> Any:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    defaults = {"accelerator": "cpu", "max_epochs": EPOCHS, "num_sanity_val_steps": 0, **quiet}
    trainer = pl.Trainer(callbacks=callbacks, default_root_dir=folder, **defaults | options)
    validation = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(StatefulLoader().inputs, StatefulLoader().targets), batch_size=8
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(num_workers|schedule d|not resumable|treespec|not empty|epoch parameter).*"
        )
        with LOAD_PLAIN_TYPES_ONLY if safe_load else contextlib.nullcontext():
            trainer.fit(model, StatefulLoader(), validation, ckpt_path=ckpt_path)
    return trainer


def gradual(**options: Any) -> Any:
    return lambda: [GradualUnfreeze(STAGES, verbose=False, **options)]


RUNS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "epochs": (gradual(every_n_epochs=1), {}, {}),
    "epochs with layer-wise rates, warm-up and BatchNorm": (
        lambda: [GradualUnfreeze(STAGES, warmup_steps=6, verbose=False), LayerwiseLR(0.5), BatchNormEval()],
        {"scheduler": "OneCycleLR", "interval": "step"},
        {},
    ),
    "steps": (gradual(every_n_train_steps=5, warmup_steps=3), {"optimizer": "SGD"}, {}),
    "steps with accumulation": (gradual(every_n_train_steps=3), {}, {"accumulate_grad_batches": 2}),
    "at epochs": (gradual(at=[0, 2, 2]), {"optimizer": "Adagrad", "scheduler": "Sequential"}, {}),
    "at fractions": (gradual(at=[0, 0.3, 0.7]), {"optimizer": "RMSprop", "interval": "step"}, {}),
    "curve": (gradual(curve="cosine", span=(0.1, 0.9)), {"optimizer": "NAdam"}, {}),
    "metric": (gradual(monitor="val", patience=1), {}, {}),
    "metric twice an epoch, best restored": (
        gradual(monitor="val", patience=2, restore_best=True, max_epochs_per_stage=2),
        {},
        {"val_check_interval": 0.5},
    ),
    "window in epochs, state dropped": (
        lambda: [FreezeLayers("model.3", 1, 3, optimizer_state="drop"), FreezeLayers("model.0", stop=2)],
        {"optimizer": "Adagrad"},
        {},
    ),
    "window in steps, state kept": (lambda: [FreezeLayers("model.3", 3, 11, unit="step")], {"optimizer": "SGD"}, {}),
    "window in steps, state on the host": (
        lambda: [FreezeLayers("model.3", 3, 11, unit="step", optimizer_state="cpu"), BatchNormEval(when="frozen")],
        {"interval": "step", "scheduler": "Sequential"},
        {},
    ),
    "rotation, state dropped": (
        lambda: [RotatingUnfreeze(STAGES, always="model.6.bias", every_n_train_steps=3, verbose=False)],
        {},
        {},
    ),
    "rotation in order, state on the host, with accumulation": (
        lambda: [
            RotatingUnfreeze(STAGES, 2, every_n_train_steps=3, order="ascending", optimizer_state="cpu", verbose=False)
        ],
        {"optimizer": "SGD"},
        {"accumulate_grad_batches": 2},
    ),
    "progressive by the clock": (
        lambda: [ProgressiveFreeze(STAGES, span=(0.2, 0.8), verbose=False)],
        {"optimizer": "NAdam", "scheduler": "OneCycleLR", "interval": "step"},
        {},
    ),
    "progressive by the gradient": (  # in reverse: here the head settles first
        lambda: [ProgressiveFreeze(STAGES[::-1], (0.0, 1.0), metric="grad_norm", percentile=90, verbose=False)],
        {},
        {},
    ),
    "adaptive rates while stages thaw": (
        lambda: [GradualUnfreeze(STAGES, warmup_steps=3, verbose=False), LayerAdaptiveLR(max_factor=2.0)],
        {"scheduler": "Sequential"},
        {},
    ),
    "ratios of the epoch before": (
        lambda: [
            GradualUnfreeze(STAGES, verbose=False),
            LayerAdaptiveLR("gradient_ratio", stages=STAGES, every="epoch", verbose=False),
        ],
        {},
        {},
    ),
    "a cycle per stage, with warm-up and layer-wise rates": (
        lambda: [
            GradualUnfreeze(STAGES, at=[0, 0.3, 0.7], warmup_steps=3, verbose=False),
            LayerwiseLR(0.5),
            StageSchedule(warmup=0.4, verbose=False),
        ],
        {"scheduler": "OneCycleLR", "interval": "step"},
        {},
    ),
    "a cycle per stage that a metric ends, momentum of SGD": (
        lambda: [
            GradualUnfreeze(STAGES, monitor="val", patience=1, verbose=False),
            StageSchedule(warmup=[0.5, 0.2], length=6, verbose=False),
        ],
        {"optimizer": "SGD"},
        {},
    ),
    "a cycle from each unfreezing on": (
        lambda: [
            GradualUnfreeze(STAGES, every_n_train_steps=3, verbose=False),
            StageSchedule("slanted_triangular", restart="new", verbose=False),
        ],
        {},
        {"accumulate_grad_batches": 2},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumed_from_any_of_its_checkpoints_ends_as_if_never_interrupted(name: str, tmp_path: Path) -> None:
    callbacks, model, options = RUNS[name]
    saver = SaveEverywhere(tmp_path, metric="metric" in name)
    expected = everything(fit(Net(**model), [*callbacks(), saver], tmp_path, **options))
    assert len(saver.paths) >= EPOCHS * 4
    broken = {}
    for path in saver.paths:
        resumed = everything(fit(Net(**model), callbacks(), tmp_path, ckpt_path=path, safe_load=True, **options))
        if different := differences(expected, resumed):
            broken[path.name] = different[:3]
    assert not broken


def test_the_runs_above_do_change_what_trains() -> None:
    """The check above would pass for callbacks that do nothing."""
    for name, (callbacks, model, options) in RUNS.items():
        seen: list[int] = []

        class Watch(pl.Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, *_: Any, seen: list[int] = seen) -> None:
                seen.append(sum(parameter.requires_grad for parameter in module.parameters()))

        fit(Net(**model), [*callbacks(), Watch()], Path(), **options)
        assert len(set(seen)) > 1, name


def test_a_longer_run_resumed_does_not_freeze_again_what_trained(tmp_path: Path) -> None:
    first = fit(Net(), [GradualUnfreeze(STAGES, at=[0, 0.2, 0.5], verbose=False)], tmp_path)
    first.save_checkpoint(tmp_path / "end.ckpt")
    callback = GradualUnfreeze(STAGES, at=[0, 0.2, 0.5], verbose=False)
    seen: list[int] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            seen.append(sum(parameter.requires_grad for parameter in module.parameters()))

    fit(Net(), [callback, Watch()], tmp_path, ckpt_path=tmp_path / "end.ckpt", max_epochs=EPOCHS * 4)
    assert set(seen) == {10}


def _checkpoint(folder: Path, callbacks: list[Any]) -> Path:
    trainer = fit(Net(), callbacks, folder, max_epochs=2)
    trainer.save_checkpoint(folder / "two.ckpt")
    return folder / "two.ckpt"


def test_a_checkpoint_with_other_stages_is_refused_and_both_are_shown(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, [GradualUnfreeze(STAGES, verbose=False)])
    with pytest.raises(ResumeError, match=r"(?s)Checkpoint: model\.6.*This run: +model\.6.*model\.4"):
        fit(Net(), [GradualUnfreeze(["model.6", "model.4", "model.3"], verbose=False)], tmp_path, ckpt_path=path)


def test_a_checkpoint_with_another_schedule_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, [FreezeLayers("model.0")])
    with pytest.raises(ResumeError, match=r"'model\.0\.bias'.*trains.*was frozen"):
        fit(Net(), [FreezeLayers("model.3")], tmp_path, ckpt_path=path)


def test_a_checkpoint_with_other_rates_is_refused_with_both_groupings(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, [GradualUnfreeze(STAGES, verbose=False)])
    callbacks = [GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(multipliers={"model.3.bias": 2.0})]
    with pytest.raises(ResumeError, match=r"(?s)groups of optimizer 0.*Checkpoint: .*This run:"):
        fit(Net(), callbacks, tmp_path, ckpt_path=path)


def test_a_checkpoint_of_a_run_without_these_callbacks_is_refused(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, [])
    with pytest.raises(ResumeError, match="without GradualUnfreeze"):
        fit(Net(), [GradualUnfreeze(STAGES, verbose=False)], tmp_path, ckpt_path=path)


def test_the_order_of_the_callbacks_may_change_between_runs(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        gradual = GradualUnfreeze(STAGES, every_n_epochs=2, verbose=False)
        return [gradual, FreezeLayers("model.3", 1, 3), FreezeLayers("model.6.bias", 0, 4), LayerwiseLR(0.5)]

    expected = everything(fit(Net(), callbacks(), tmp_path))
    path = _checkpoint(tmp_path, callbacks())
    resumed = everything(fit(Net(), callbacks()[::-1], tmp_path, ckpt_path=path))
    assert not differences(expected, resumed)


@pytest.mark.skipif(BEFORE_2_6, reason="this Lightning resumes a run that max_steps ended in another place, by itself")
def test_the_last_checkpoint_of_model_checkpoint_resumes_through_last(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        keeper = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=7, save_top_k=1)
        return [GradualUnfreeze(STAGES, warmup_steps=3, verbose=False), keeper]

    expected = everything(fit(Net(), callbacks(), tmp_path / "whole", enable_checkpointing=True))
    for leftover in tmp_path.glob("*.ckpt"):
        leftover.unlink()
    fit(Net(), callbacks(), tmp_path, enable_checkpointing=True, max_steps=11)
    resumed = everything(fit(Net(), callbacks(), tmp_path, ckpt_path="last", enable_checkpointing=True))
    assert not differences(expected, resumed)
