"""What has to hold for a module of another package, and a run that finds out."""

from __future__ import annotations

import inspect
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import torch
from torch import Tensor
from torch.utils.data import RandomSampler
from wild_cases import CASES, WITH_NORMS

from lightning_freeze import BatchNormEval, FreezeAudit, GradualUnfreeze, LayerwiseLR, Stage
from lightning_freeze.trainer._lightning import Callback
from lightning_freeze.trainer.session import last_session

EPOCHS, DECAY = 3, 0.5
CHECKS = ("stages='auto'", "bits", "rates", "named = auto", "stages=3", "resume")


class Recorder(Callback):
    """The same random numbers in each step of each run, and what a run did."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint
        self.start: tuple[dict[str, Tensor], set[str]] = ({}, set())
        self.moved: list[str] = []  # frozen, and written
        self.rates: list[str] = []  # not those of the layer
        self.final: dict[str, Tensor] = {}
        self.stages: list[Stage] = []
        self.unfrozen: list[int] = []

    def __deepcopy__(self, memo: Any) -> Recorder:
        return self  # neuralforecast trains copies of its models and their callbacks

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
            self.start = copies(module), frozen
            self.unfrozen.append(len(self.start[0]) - len(frozen))
        torch.manual_seed(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        view = last_session(trainer).view()
        order = [stage.name for binding in view.bindings for stage in binding.stages]
        for slot in view.slots:
            expected = DECAY ** order.index(slot.label) if slot.label else None
            if expected is not None and abs(slot.factor - expected) > 1e-12:
                self.rates.append(f"{slot.label} has factor {slot.factor:g}, not {expected:g}")
        scales = {(slot.optimizer, slot.origin, round(slot.lr / slot.factor, 9)) for slot in view.slots if slot.factor}
        if len(scales) > len({scale[:2] for scale in scales}):
            self.rates.append("groups of one optimizer do not share a base rate")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        before, frozen = self.start
        by_design = {name for name in frozen if "momentum" in name or "target" in name}
        now = copies(module)
        self.moved += [name for name in frozen - by_design if not same(before[name], now[name])]
        if self.checkpoint is not None and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.checkpoint)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        statistics = {name: one.detach().clone() for name, one in module.named_buffers() if "running_" in name}
        self.final = copies(module) | statistics
        bound = last_session(trainer).view().bindings[0].stages
        self.stages = [Stage(stage.name, list(stage.patterns)) for stage in bound]


def one_order(sampler: Any) -> Iterator[int]:
    """In place of `RandomSampler.__iter__`: a resumed run draws the order of its first epoch at another moment."""
    yield from torch.randperm(len(sampler.data_source), generator=torch.Generator().manual_seed(0)).tolist()


def copies(module: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(one: Tensor, other: Tensor) -> bool:
    return (
        torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
        if one.dim()
        else bool(torch.equal(one, other))
    )


def train(name: str, stages: Any, resume: Path | None = None, checkpoint: Path | None = None) -> Recorder:
    """Train a case with all of the callbacks that work on any module."""
    recorder = Recorder(checkpoint)
    ignored = {"MoCoTask": "*momentum*", "MoCo": "*momentum*", "BYOLTask": "*target*"}.get(name.split()[1])
    callbacks = [
        GradualUnfreeze(stages, every_n_epochs=1, verbose=False),
        LayerwiseLR(DECAY, stages=stages),
        FreezeAudit(verbose=False, ignore=ignored),
        *([BatchNormEval()] if name in WITH_NORMS else []),
        recorder,
    ]
    torch.manual_seed(0)
    numpy.random.seed(0)
    run = CASES[name][2]
    options = {"resume": resume} if "resume" in inspect.signature(run).parameters else {}
    with mock.patch.object(RandomSampler, "__iter__", one_order):
        run(callbacks, EPOCHS, **options)
    assert recorder.final, "the entry point dropped the callbacks"
    return recorder


def check(name: str) -> dict[str, str]:
    """One row of the table: each check -> "yes", "-" where it cannot be asked, or what was found instead."""
    found: dict[str, str] = {}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        checkpoint = Path(folder, "epoch.ckpt")
        auto = _try(found, CHECKS[0], lambda: train(name, "auto", checkpoint=checkpoint))
        if auto is None:
            return found
        found[CHECKS[0]] = f"{len(auto.stages)} stages"
        found["bits"] = "yes" if not auto.moved else f"{auto.moved[0]} moved while it was frozen"
        found["rates"] = "yes" if not auto.rates else auto.rates[0]
        named = _try(found, CHECKS[3], lambda: train(name, auto.stages))
        if named is not None:
            found[CHECKS[3]] = _difference(auto, named)
        three = _try(found, CHECKS[4], lambda: train(name, 3))
        if three is not None:
            found[CHECKS[4]] = "yes" if len(three.stages) <= 3 and not three.moved and not three.rates else "no"
        if "resume" not in inspect.signature(CASES[name][2]).parameters:
            found[CHECKS[5]] = "-"
        elif (resumed := _try(found, CHECKS[5], lambda: train(name, "auto", resume=checkpoint))) is not None:
            found[CHECKS[5]] = _difference(auto, resumed)
    return found


def _difference(one: Recorder, other: Recorder) -> str:
    moved = [key for key, value in one.final.items() if not same(value, other.final[key])]
    return "yes" if not moved else f"{moved[0]} and {len(moved) - 1} more differ"


def _try(found: dict[str, str], key: str, run: Any) -> Recorder | None:
    try:
        recorder: Recorder = run()
    except Exception as error:
        traceback.print_exc()
        found[key] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return None
    return recorder


# What does not hold, and why: the fault lies outside of this package.
KNOWN = {
    "torchgeo BYOLTask": (
        {"bits", "stages=3"},
        "its online and target networks share one backbone, and `update_target` rewrites these weights in each step, "
        "which rounds them; FreezeAudit says so unless they are in `ignore`",
    ),
    "gluonts DeepAREstimator.train": (
        {"resume"},
        "its loader is an endless random stream, and no checkpoint holds its position",
    ),
}


def is_bad(row: dict[str, str]) -> list[str]:
    """The checks of a row that did not hold."""
    wrong = [key for key in CHECKS[1:] if row.get(key, "missing") not in ("yes", "-")]
    return wrong if "stages" in row.get(CHECKS[0], "") else [CHECKS[0], *wrong]
