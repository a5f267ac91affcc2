"""FreezeAudit: each planted fault is caught and named, and nothing else is."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import STAGES, Batches, Net, Spy, fit, trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from lightning_freeze import (
    BatchNormEval,
    FreezeAudit,
    FreezeLayers,
    FreezeViolation,
    GradualUnfreeze,
    LayerwiseLR,
    PatternError,
    PlanError,
    fingerprint,
    freeze,
)
from lightning_freeze.auditing.violations import audit
from lightning_freeze.trainer.session import last_session

Fault = Callable[[pl.Trainer, Net], Any]


def gradual(**options: Any) -> GradualUnfreeze:
    return GradualUnfreeze(STAGES, verbose=False, **{"every_n_epochs": 2} | options)


class Plant(pl.Callback):
    """Does something once, at the first batch of the second epoch."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 0:
            self.fault(trainer, module)


def group(running: pl.Trainer, name: str) -> dict[str, Any]:
    return next(group for group in running.optimizers[0].param_groups if group["name"] == name)


def drop(running: pl.Trainer, _: Net) -> None:
    group(running, "head")["params"] = group(running, "head")["params"][1:]


def add_again(running: pl.Trainer, _: Net) -> None:
    group(running, "stem")["params"].append(group(running, "head")["params"][0])


def put_back(running: pl.Trainer, module: Net) -> None:
    group(running, "head")["params"].append(module.stem[0].weight)


def momentum(running: pl.Trainer, module: Net) -> None:
    put_back(running, module)
    module.stem[0].weight.grad = torch.ones(4, 4)
    running.optimizers[0].step()


def swap(_: pl.Trainer, module: Net) -> None:
    module.mid[0].weight, module.stem[0].weight = module.stem[0].weight, module.mid[0].weight


FAULTS: list[tuple[str, Fault, str]] = [
    ("a bit", lambda _, net: net.stem[0].weight.view(-1)[3].mul_(1 + 2**-23), r"'stem\.0\.weight'.*has moved"),
    ("a flip", lambda _, net: net.stem[0].weight.copy_(net.stem[0].weight.flip(0)), r"'stem\.0\.weight'.*has moved"),
    ("minus 0", lambda _, net: net.stem[1].running_mean.zero_().neg_(), r"'stem\.1\.running_mean'.*has moved"),
    ("data", lambda _, net: setattr(net.mid[0].weight, "data", torch.ones(4, 4)), r"'mid\.0\.weight'.*has moved"),
    ("statistics", lambda _, net: net.stem[1].running_var.add_(1e-6), r"'stem\.1\.running_var'.*has moved"),
    ("a counter", lambda _, net: net.mid[1].num_batches_tracked.add_(1), r"'mid\.1\.num_batches_tracked'.*moved"),
    ("a new buffer", lambda _, net: setattr(net.stem[1], "running_mean", torch.ones(4)), r"running_mean'.*has moved"),
    ("a new parameter", lambda _, net: setattr(net.stem[0], "weight", nn.Parameter(torch.ones(4, 4))),
     r"'stem\.0\.weight'.*replaced by another tensor"),
    ("two swapped", swap, r"'stem\.0\.weight'.*replaced by another tensor"),
    ("train mode", lambda _, net: setattr(net.stem[1], "training", True), r"'stem\.1', a BatchNorm1d, is in tr"),
    ("dropout", lambda _, net: setattr(net.mid[3], "training", True), r"'mid\.3'.*\(Dropout\) is to run in eval mode"),
    ("flag on", lambda _, net: net.stem[0].weight.requires_grad_(True), r"'stem\.0\.weight'.*requires a gradient"),
    ("flag off", lambda _, net: net.head.bias.requires_grad_(False), r"'head\.bias'.*is trainable and requires none"),
    ("dropped", drop, r"'head\.weight' \(stage 'head'\) is trainable and in no group"),
    ("twice", add_again, r"'head\.weight' \(stage 'head'\) is in 2 groups"),
    ("put back", put_back, r"'stem\.0\.weight' \(stage 'stem'\) is frozen and in group 'head' of optimizer 0 \(SGD\)"),
    ("momentum", momentum, r"'stem\.0\.weight' \(stage 'stem'\) is frozen and has moved; [^']*\n"
     r"    Likely cause: it is in a group of an optimizer: weight decay or momentum"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "message"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
def test_a_planted_fault_is_caught_in_its_epoch_by_name(fault: Fault, message: str) -> None:
    with pytest.raises(FreezeViolation, match=message) as caught:
        fit(Net(), [gradual(), FreezeAudit(), Plant(fault)], epochs=5)
    assert "audit at the end of epoch 1, step 4" in str(caught.value)
    assert "last right: the end of epoch 0, step 2" in str(caught.value)


def test_the_callback_that_wrote_is_named() -> None:
    with pytest.raises(FreezeViolation, match="Likely cause: Plant writes parameters and buffers"):
        fit(Net(), [gradual(), FreezeAudit(), Plant(FAULTS[0][1])], epochs=5)


def test_a_tied_alias_that_trains_is_the_cause() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mid[0].weight = nn.Parameter(self.stem[0].weight.data)  # other parameter, same memory

    with pytest.raises(FreezeViolation, match=r"shares its memory with 'mid\.0\.weight', a tied alias that trains"):
        fit(Tied(), [FreezeLayers("stem", verbose=False), FreezeAudit()])


class OwnAverage(StochasticWeightAveraging):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # type: ignore[override]
        pl_module.stem[0].weight.data.mul_(0.9)


def test_an_average_of_weights_that_moves_what_is_frozen_is_the_cause() -> None:
    averaging = OwnAverage(swa_lrs=0.1, swa_epoch_start=1)
    with pytest.raises(FreezeViolation, match="Likely cause: OwnAverage writes parameters and buffers"):
        fit(NoNorm(), [averaging, FreezeLayers("stem", verbose=False), FreezeAudit()], epochs=5)


class NoNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem[1], self.mid[1] = nn.Identity(), nn.Identity()


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


def test_what_never_received_a_gradient_is_named_once_and_the_run_goes_on() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Unused(), [FreezeLayers("stem", verbose=False), FreezeAudit()])
    said = [str(one.message) for one in caught if "no gradient" in str(one.message)]
    assert len(said) == 1
    assert (
        "'spare.weight' (2 parameters in all) is trainable and has received no gradient by the end of epoch 0"
        in said[0]
    )
    fit(Unused(), [FreezeLayers("stem", verbose=False), FreezeAudit(ignore="spare")])


def test_looking_for_gradients_ends_when_all_have_come() -> None:
    audit = FreezeAudit(verbose=False)
    hooks = Spy("on_train_epoch_start", lambda running, _: len(running.optimizers[0]._optimizer_step_post_hooks))
    fit(Net(), [hooks, FreezeLayers("stem"), audit], epochs=3)
    assert hooks.seen == [1, 0, 0]


ONCE = [case for case in FAULTS if case[0] not in ("train mode", "momentum")]  # those move something in each epoch


@pytest.mark.parametrize(("fault", "message"), [case[1:] for case in ONCE], ids=[case[0] for case in ONCE])
def test_warn_says_it_once_and_goes_on(fault: Fault, message: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Net(), [gradual(every_n_epochs=9), FreezeAudit(on_violation="warn"), Plant(fault)], epochs=6)
    said = [str(one.message) for one in caught if "FreezeAudit" in str(one.message)]
    assert len(said) == 1
    assert re.search(message, said[0])


def test_an_interval_is_kept_and_the_end_is_audited_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Net(), [FreezeLayers("stem"), FreezeAudit(every_n_epochs=2)], epochs=5)
    assert re.search(r"FreezeAudit: 3 audits, 6 frozen tensors at the last, \d\.\d+ s in all", capsys.readouterr().out)
    with pytest.raises(FreezeViolation, match="the end of training, step 4"):
        fit(Net(), [FreezeLayers("stem", verbose=False), FreezeAudit(every_n_epochs=9), Plant(FAULTS[0][1])], epochs=2)


def test_two_faults_are_both_named() -> None:
    def both(running: Any, net: Any) -> None:
        drop(running, net)
        net.stem[0].weight.zero_()

    with pytest.raises(FreezeViolation, match=r"2 violations.\n  1. 'stem.0.weight'[\s\S]*2. 'head.weight'"):
        fit(Net(), [gradual(), FreezeAudit(), Plant(both)], epochs=5)


# ---- no false alarm


class Manual(Net):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in [self.optimizers(use_pl_optimizer=False)]:
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
            optimizer.zero_grad()


class Two(Net):
    """Two optimizers, of which the second steps in later epochs only."""

    def __init__(self) -> None:
        super().__init__(lambda net: [torch.optim.SGD(part.parameters(), 0.1) for part in (net.head, net.stem)])
        self.automatic_optimization = False
        self.mid.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        self.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers()[: 1 + (self.current_epoch > 1)]:
            optimizer.step()


class Sometimes(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if self.current_epoch == 1 else super().training_step(batch, batch_idx)


RIGHT: dict[str, Callable[[], tuple[Any, list[Any], dict[str, Any]]]] = {
    "gradual": lambda: (Net(), [gradual()], {}),
    "steps": lambda: (Net(), [gradual(every_n_epochs=None, every_n_train_steps=3)], {}),
    "warm-up": lambda: (Net(), [gradual(warmup_steps=3), LayerwiseLR(0.5)], {}),
    "restore": lambda: (
        Net(None, [1, 2, 2, 3, 1, 1, 1, 1]),
        [gradual(every_n_epochs=None, monitor="val", patience=2, restore_best=True), FreezeLayers("mid", 3, 5)],
        {"max_epochs": 8},
    ),
    "refreeze": lambda: (Net(), [FreezeLayers("mid", 2, 4), FreezeLayers("stem", 3, 9, unit="step")], {}),
    "each step": lambda: (Net(), [FreezeLayers("mid", k, k + 1, unit="step") for k in range(0, 12, 2)], {}),
    "affine": lambda: (Net(), [BatchNormEval()], {}),
    "train mode": lambda: (Net(), [FreezeLayers("stem", eval_frozen=False)], {}),
    "manual": lambda: (Manual(), [gradual()], {}),
    "two": lambda: (Two(), [FreezeLayers("stem.1")], {}),
    "no loss": lambda: (Sometimes(), [gradual()], {}),
    "accumulated": lambda: (Net(), [gradual()], {"accumulate_grad_batches": 3}),
    "clipped": lambda: (Net(), [gradual()], {"gradient_clip_val": 0.1}),
    "swa": lambda: (NoNorm(), [gradual(), StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2)], {}),
    "fast": lambda: (Net(), [gradual()], {"fast_dev_run": True}),
    "alone": lambda: (Net(), [], {}),
    "adagrad": lambda: (Net(lambda net: torch.optim.Adagrad(net.parameters())), [gradual()], {}),
}


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("first", [True, False])
def test_no_false_alarm(case: str, first: bool) -> None:
    module, callbacks, options = RIGHT[case]()
    proof = FreezeAudit(verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, [proof, *callbacks] if first else [*callbacks, proof], **{"epochs": 6} | options)
    assert proof.audits > 1


def test_an_average_beside_it_is_no_false_alarm() -> None:
    averaging = getattr(pl.callbacks, "EMAWeightAveraging", None)
    if averaging is None:
        pytest.skip("lightning has no weight averaging yet")
    fit(Net(), [gradual(), averaging(decay=0.5), FreezeAudit(), BatchNormEval()], epochs=6)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_goes_on_auditing(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
    fit(Net(), [gradual(), FreezeAudit(), keeper], epochs=6, enable_checkpointing=True)
    proof = FreezeAudit(verbose=False)
    trainer([gradual(), proof], 6).fit(Net(), Batches(2), Batches(1), ckpt_path=tmp_path / "step=4.ckpt")
    assert proof.audits == 5  # of the epochs 2 to 5, and at the end
    late = Spy("on_train_epoch_start", lambda running, net: running.current_epoch == 3 and spoil(net))
    again = trainer([late, gradual(), FreezeAudit()], 6)
    with pytest.raises(FreezeViolation, match="has moved; last right: the end of epoch 2"):
        again.fit(Net(), Batches(2), Batches(1), ckpt_path=tmp_path / "step=4.ckpt")


def spoil(net: Net) -> None:
    net.stem[0].weight.data.zero_()


def test_a_momentum_teacher_is_ignored_by_name_and_only_then() -> None:
    class Teacher(Net):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = copy.deepcopy(self.stem).requires_grad_(False)

        def on_train_batch_end(self, *_: Any) -> None:
            with torch.no_grad():
                for slow, fast in zip(self.teacher.parameters(), self.stem.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)

    with pytest.raises(FreezeViolation, match=r"'teacher\.0\.weight'"):
        fit(Teacher(), [FreezeLayers("mid", verbose=False), FreezeAudit()])
    fit(Teacher(), [FreezeLayers("mid", verbose=False), FreezeAudit(ignore=["teacher"])])


# ---- arguments, copies, and without a Trainer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs must be a whole number of at least 1"),
        ({"on_violation": "ignore"}, "on_violation must be one of 'raise', 'warn'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        FreezeAudit(**arguments)
    with pytest.raises(PatternError, match="FreezeAudit ignore: "):
        FreezeAudit(ignore="re:(")


def test_what_is_to_be_ignored_has_to_exist() -> None:
    with pytest.raises(PatternError, match="FreezeAudit ignore: pattern 'teacher' matches none of the 14 parameters"):
        fit(Net(), [FreezeAudit(ignore="teacher")])


def test_a_copy_leaves_the_watcher_behind() -> None:
    proof = FreezeAudit(verbose=False)
    copies = Spy("on_train_epoch_end", lambda *_: (pickle.dumps(proof), copy.deepcopy(proof)._watcher))
    fit(Net(), [FreezeLayers("stem"), proof, copies], epochs=1)
    assert [watch for _, watch in copies.seen] == [None]


def test_a_plain_loop_is_audited_by_a_function() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    freeze(model, ["0", "1"])
    before = fingerprint(model, ["0", "1"])
    optimizer = torch.optim.SGD(model[2].parameters(), 0.1)
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    assert audit(model, optimizer, before) == []
    model[1].running_mean.add_(1)
    optimizer.add_param_group({"params": model[0].parameters()})
    found = {one.name: one.found for one in audit(model, [optimizer], before)}
    assert set(found) == {"1.running_mean", "0.weight", "0.bias"}
    assert found["0.bias"] == "is frozen and in group '1' of optimizer 0 (SGD)"


def test_a_run_that_breaks_off_is_closed_also_where_nothing_else_is_beside_the_audit() -> None:
    class Breaks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise KeyError("broken")

    running = trainer([FreezeAudit()], 1)
    with pytest.raises(KeyError, match="broken"):
        running.fit(Breaks(), Batches(1), Batches(1))
    assert last_session(running).over
