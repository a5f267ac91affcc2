"""Every torch LR scheduler: each slot has its factor times the rate of an untouched twin, at any moment of a run."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import STAGES, Net, Spy, fit
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from schedulers import SCHEDULERS, Make
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LinearLR, LRScheduler, StepLR

from lightning_freeze import FreezeLayers, GradualUnfreeze, LayerwiseLR

FACTORS = {"head": 1.0, "mid": 0.5, "stem": 0.25}
EPOCHS, STEPS = 10, 2


def test_every_scheduler_of_torch_is_tried() -> None:
    classes = [cls for name, cls in vars(lr_scheduler).items() if inspect.isclass(cls) and issubclass(cls, LRScheduler)]
    missing = {cls.__name__ for cls in classes} - {name.split()[0] for name in SCHEDULERS}
    assert missing <= {"LRScheduler", "_LRScheduler"}


def groups_of(parameters: list[nn.Parameter], own: bool) -> Any:
    if not own:
        return [{"params": parameters}]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim == 1], "lr": 0.03, "weight_decay": 0.0},
    ]


class Twins(Net):
    """Steps, beside the scheduler of its optimizer, one of an optimizer that no callback knows of."""

    def __init__(self, make: Make, interval: str, own: bool, cls: Any) -> None:
        super().__init__()
        parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
        self.make, self.interval, self.own, self.cls = make, interval, own, cls
        self.twin = self._optimizer(parameters)
        self.twin_scheduler = make(self.twin)
        self.twin.step()

    def _optimizer(self, parameters: list[nn.Parameter]) -> Any:
        return self.cls(groups_of(parameters, self.own), lr=0.1, **({"momentum": 0.8} if self.cls is SGD else {}))

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(list(self.parameters()))
        config = {"scheduler": self.make(optimizer), "interval": self.interval, "monitor": "up and down"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("up and down", [1.0, 0.9, 0.95, 0.97, 0.99, 0.8, 0.9][self.global_step % 7])
        return super().training_step(batch, batch_idx)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        super().lr_scheduler_step(scheduler, metric)
        self.twin_scheduler.step() if metric is None else self.twin_scheduler.step(metric)

    def compare(self, trainer: Any, _: Any = None) -> float:
        (optimizer,) = trainer.optimizers
        for group in optimizer.param_groups:
            stage, _, origin = group["name"].partition("/pg")
            twin = self.twin.param_groups[int(origin or 1) - 1]
            assert float(group["lr"]) == pytest.approx(FACTORS[stage] * float(twin["lr"]), rel=1e-12, abs=0)
            assert {key: group.get(key) for key in ("momentum", "betas")} == {
                key: twin.get(key) for key in ("momentum", "betas")
            }
        last = trainer.lr_scheduler_configs[0].scheduler.get_last_lr()
        assert list(map(float, last)) == [float(group["lr"]) for group in optimizer.param_groups]
        return float(self.twin.param_groups[0]["lr"])


HOOKS = ("on_train_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end", "on_validation_end")


@pytest.mark.filterwarnings(
    "ignore:The epoch parameter in `scheduler.step:UserWarning"
)  # torch's own SequentialLR, before 2.8
@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval':RuntimeWarning")
@pytest.mark.parametrize("cls", [SGD, AdamW], ids=["one group", "own groups, per-group lists, warm-up"])
@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_slot_has_its_factor_times_the_rate_of_a_twin(name: str, interval: str, cls: Any) -> None:
    own = cls is AdamW
    model = Twins(SCHEDULERS[name], interval, own, cls)
    spies = [Spy(hook, model.compare) for hook in HOOKS]
    gradual = GradualUnfreeze(STAGES, at=[0, 3, 6], warmup_steps=5 if own else 0, verbose=False)
    fit(model, [*spies, gradual, LayerwiseLR(0.5), FreezeLayers("mid", 8, 9)], EPOCHS, STEPS)
    assert [len(spy.seen) for spy in spies] == [1, 20, 20, 10, 10]
    assert len(set(spies[1].seen)) > 1


def test_two_schedulers_of_one_optimizer_both_scale_the_slots() -> None:
    class Both(Net):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            warmup = {"scheduler": LinearLR(optimizer, 0.5, total_iters=4), "interval": "step"}
            return [optimizer], [warmup, ExponentialLR(optimizer, 0.5)]

    def rates(trainer: Any, _: Any) -> list[float]:
        return [group["lr"] for group in trainer.optimizers[0].param_groups]

    with_us, without = Spy("on_train_batch_end", rates), Spy("on_train_batch_end", rates)
    fit(Both(), [GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(0.5), with_us])
    fit(Both(), [without])
    assert with_us.seen == [pytest.approx([0.25 * rate, 0.5 * rate, rate], rel=1e-12) for (rate,) in without.seen]


@pytest.mark.parametrize("keep", [lambda s: s, lambda s: [s], lambda s: (s,), lambda s: {"rate": s}])
def test_a_scheduler_that_the_module_keeps_to_itself_scales_the_slots(keep: Any) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            self.step_it = (schedule := LambdaLR(optimizer, lambda step: 0.5**step)).step
            self.schedule = keep(schedule)
            return optimizer

        def on_train_epoch_end(self) -> None:
            self.step_it()

    rates = Spy("on_train_batch_end", lambda trainer, _: [group["lr"] for group in trainer.optimizers[0].param_groups])
    fit(Own(), [GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(0.5), rates], steps=1)
    assert rates.seen == [[0.025 * 0.5**epoch, 0.05 * 0.5**epoch, 0.1 * 0.5**epoch] for epoch in range(3)]


# ---- warm-up: the rate during a step


class Measured(Net):
    """Plain SGD in double precision: what a parameter moved by is the rate of that step times its gradient."""

    def __init__(self, schedule: Any = None) -> None:
        super().__init__()
        self.schedule = schedule
        self.used: list[dict[str, float]] = []

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [self.schedule(optimizer)] if self.schedule else []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.before = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def on_train_batch_end(self, *_: Any) -> None:
        rates = {}
        for name, parameter in self.named_parameters():
            if parameter.grad is not None and parameter.ndim > 1:
                where = parameter.grad.abs().argmax()
                step = (self.before[name] - parameter.detach()).flatten()[where] / parameter.grad.flatten()[where]
                rates[name.partition(".")[0]] = step.item()
        self.used.append(rates)


def test_the_kth_step_after_unfreezing_uses_its_share_of_the_rate() -> None:
    model = Measured(lambda optimizer: ExponentialLR(optimizer, 0.5))
    gradual = GradualUnfreeze(STAGES, at=[0, 1, 2], warmup_steps=3, verbose=False)
    fit(model, [gradual, LayerwiseLR(0.5)], epochs=4, steps=2, precision="64-true")
    plain = [0.1 * 0.5 ** (step // 2) for step in range(8)]
    ramps = {"head": [1.0] * 8, "mid": [0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1], "stem": [0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1]}
    for stage, ramp in ramps.items():
        expected = [FACTORS[stage] * rate * share for rate, share in zip(plain, ramp, strict=True)]
        assert [rates.get(stage, 0.0) for rates in model.used] == pytest.approx(expected, rel=1e-9)


def test_warm_up_counts_optimizer_steps_under_accumulation_and_a_step_trigger() -> None:
    class Windows(Measured):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.fit_loop.epoch_loop._accumulated_batches_reached():
                super().on_train_batch_end()

    model = Windows()
    gradual = GradualUnfreeze(["head", "mid"], every_n_train_steps=3, warmup_steps=2, verbose=False)
    fit(model, [gradual], epochs=1, steps=12, accumulate_grad_batches=2, precision="64-true")
    assert [rates.get("mid", 0.0) for rates in model.used] == pytest.approx([0, 0, 0, 0.05, 0.1, 0.1], rel=1e-9)


def test_a_stage_that_was_frozen_again_ramps_again() -> None:
    model = Measured()
    gradual = GradualUnfreeze(["head", "mid"], at=[0, 0], warmup_steps=2, verbose=False)
    fit(model, [gradual, FreezeLayers("mid", 2, 3)], epochs=4, steps=2, precision="64-true")
    shares = [0.5, 1, 1, 1, 0, 0, 0.5, 1]
    assert [10 * rates.get("mid", 0.0) for rates in model.used] == pytest.approx(shares, rel=1e-9)


@pytest.mark.parametrize("hand_on", [True, False], ids=["closure handed on", "closure called"])
def test_an_optimizer_whose_step_calls_that_of_its_base_ramps_once_per_step(hand_on: bool) -> None:
    SGD([nn.Parameter(torch.ones(1))])  # from now on torch runs the step hooks for SGD.step as well

    class Sub(SGD):
        def step(self, closure: Any = None) -> Any:
            if hand_on:
                return super().step(closure)
            loss = closure()
            super().step()
            return loss

    class Model(Measured):
        def configure_optimizers(self) -> Any:
            return Sub(self.parameters(), lr=0.1)

    model = Model()
    gradual = GradualUnfreeze(["head", "mid"], at=[0, 1], warmup_steps=4, verbose=False)
    fit(model, [gradual], epochs=3, steps=2, precision="64-true")
    assert [10 * rates.get("mid", 0.0) for rates in model.used] == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1], rel=1e-9)


def test_the_training_step_inside_the_closure_sees_plain_rates() -> None:
    class Looking(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert [group["lr"] for group in self.trainer.optimizers[0].param_groups] == [0.1, 0.1, 0.1]
            return super().training_step(batch, batch_idx)

    fit(Looking(), [GradualUnfreeze(STAGES, warmup_steps=50, verbose=False)])


def test_a_step_that_raises_leaves_plain_rates_behind() -> None:
    class Failing(SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            raise RuntimeError("no step today")

    model = Net(lambda module: Failing(module.parameters(), lr=0.1))
    seen = Spy("on_exception", lambda trainer, module: [group["lr"] for group in trainer.optimizers[0].param_groups])
    with pytest.raises(RuntimeError, match="no step today"):
        fit(model, [GradualUnfreeze(STAGES, at=[0, 0, 0], warmup_steps=50, verbose=False), seen])
    assert seen.seen == [[0.1, 0.1, 0.1]]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_tensor_as_rate_is_ramped_and_scheduled_too(precision: Any) -> None:
    model = Net(lambda module: [[o := AdamW(module.parameters(), lr=torch.tensor(0.1))], [ExponentialLR(o, 0.5)]])
    rates = Spy("on_train_batch_start", lambda trainer, _: [float(g["lr"]) for g in trainer.optimizers[0].param_groups])
    fit(model, [GradualUnfreeze(STAGES, warmup_steps=3, verbose=False), LayerwiseLR(0.5), rates], precision=precision)
    assert rates.seen == [pytest.approx([0.025 * f, 0.05 * f, 0.1 * f]) for f in (1, 1, 0.5, 0.5, 0.25, 0.25)]


# ---- LearningRateMonitor


def two_optimizers(module: Any) -> Any:
    return [
        AdamW(module.head.parameters(), lr=0.1),
        AdamW([*module.stem.parameters(), *module.mid.parameters()], lr=0.1),
    ]


class Manual(Net):
    def __init__(self) -> None:
        super().__init__(two_optimizers)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


def own(module: Any) -> Any:
    return SGD(groups_of(list(module.parameters()), own=True), lr=0.1)


def named(module: Any) -> Any:
    first, second = groups_of(list(module.parameters()), own=True)
    optimizer = SGD([{**first, "name": "decay"}, {**second, "name": "no_decay"}], lr=0.1)
    return [optimizer], [{"scheduler": StepLR(optimizer, 1), "name": "rate"}]


LINES = {
    "one group": (Net, ["lr-SGD/stem", "lr-SGD/mid", "lr-SGD/head"]),
    "own groups": (
        lambda: Net(own),
        [
            "lr-SGD/stem/pg1",
            "lr-SGD/mid/pg1",
            "lr-SGD/head/pg1",
            "lr-SGD/stem/pg2",
            "lr-SGD/mid/pg2",
            "lr-SGD/head/pg2",
        ],
    ),
    "own groups with names": (
        lambda: Net(named),
        [
            "rate/stem/decay",
            "rate/mid/decay",
            "rate/head/decay",
            "rate/stem/no_decay",
            "rate/mid/no_decay",
            "rate/head/no_decay",
        ],
    ),
    "two optimizers": (Manual, ["lr-AdamW/head", "lr-AdamW-1/stem", "lr-AdamW-1/mid"]),
}


@pytest.mark.parametrize("name", LINES)
def test_the_learning_rate_monitor_shows_a_line_per_slot_under_the_stages_name(name: str, tmp_path: Path) -> None:
    make, lines = LINES[name]
    monitor = LearningRateMonitor()
    callbacks = [monitor, GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(0.5)]
    fit(make(), callbacks, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert list(monitor.lrs) == lines
    assert all(len(values) >= 3 for values in monitor.lrs.values())
