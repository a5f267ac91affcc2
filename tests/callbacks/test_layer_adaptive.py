"""LayerAdaptiveLR against optimizers written out here: the same weights over 50 steps."""

from __future__ import annotations

import csv
import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from branches import TASKS, TwoTasks
from branches import Batches as Tasks
from helpers import STAGES, Batches, Net, NeverTrains, Spy, fit, tensors, trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_freeze import (
    FreezeLayers,
    GradualUnfreeze,
    LayerAdaptiveLR,
    LayerwiseLR,
    OptimizerError,
    PlanError,
    TaskFreeze,
)
from lightning_freeze.optim.layer_ratios import gradient_ratios, moment_ratios, trust_ratios

STEPS = 50
BOUNDS = {
    "moment_ratio": (0.2, 0.9),
    "trust_ratio": (0.5, 40.0),
    "gradient_ratio": (0.2, 1.0),
}  # some of the factors are beyond them


class Flat(Net):
    """Without Dropout and BatchNorm, and with a scheduler that steps with every batch."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.stem, self.mid = (nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.make = make

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.98), "interval": "step"}]


def moment_ratio(optimizer: Any, group: Any, parameters: list[Any]) -> float:
    """The definition, element by element."""
    ratios = []
    for parameter in parameters:
        if state := optimizer.state.get(parameter):
            (beta1, beta2), t = group["betas"], float(state["step"])
            m, v = state["exp_avg"].double() / (1 - beta1**t), state["exp_avg_sq"].double() / (1 - beta2**t)
            ratios += (m.abs() / (v.sqrt() + group["eps"])).flatten().tolist()
    return sum(ratios) / len(ratios) if ratios else 1.0


def trust_ratio(optimizer: Any, group: Any, parameters: list[Any]) -> float:
    weights, gradients = (
        torch.cat([t.flatten() for t in ts]).double().norm().item()
        for ts in zip(*[(p.detach(), p.grad) for p in parameters], strict=True)
    )
    return weights / gradients if weights and gradients else 1.0


def gradient_ratio(optimizer: Any, group: Any, parameters: list[Any]) -> float:
    """|g| / |w| of a group; `by_hand` divides by the largest."""
    return 1 / trust_ratio(optimizer, group, parameters)


def by_hand(make: Any, kind: str, stages: list[str]) -> tuple[dict[str, Any], list[list[float]]]:
    """A plain loop with one group per stage, whose rate is written before each step and put back after it."""
    model, ratio, (low, high) = (
        Flat(make),
        {"moment_ratio": moment_ratio, "trust_ratio": trust_ratio, "gradient_ratio": gradient_ratio}[kind],
        BOUNDS[kind],
    )
    parts = [list(getattr(model, stage).parameters()) for stage in stages] if stages else [list(model.parameters())]
    optimizer = make([{"params": part} for part in parts])
    scheduler, used = ExponentialLR(optimizer, 0.98), []
    loader = Batches(5)
    for step in range(STEPS):
        optimizer.zero_grad()
        model.training_step(loader.all[step % 5], 0).backward()
        factors = [ratio(optimizer, g, p) for g, p in zip(optimizer.param_groups, parts, strict=True)]
        if ratio is gradient_ratio:
            factors = [factor / max(factors) for factor in factors]
        begun = bool(optimizer.state) or ratio is not moment_ratio
        used.append([min(max(factor, low), high) if begun else 1.0 for factor in factors])
        plain = [group["lr"] for group in optimizer.param_groups]
        for group, factor in zip(optimizer.param_groups, used[-1], strict=True):
            group["lr"] = group["lr"] * factor
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, plain, strict=True):
            group["lr"] = rate
        scheduler.step()
    return tensors(model), used


def adam_family() -> list[Any]:
    variants = [(cls, switch) for cls in (Adam, AdamW, NAdam, RAdam) for switch in ("", "fused", "foreach", "amsgrad")]
    return [
        pytest.param(
            lambda p, c=cls, s=switch: c(p, lr=0.02, **({s: True} if s else {})), id=f"{cls.__name__} {switch}"
        )
        for cls, switch in variants
        if (not switch or switch in inspect.signature(cls).parameters) and not (cls is RAdam and switch == "fused")
    ]


ANY = {
    "SGD": lambda p: SGD(p, lr=0.001, momentum=0.9),
    "AdamW": lambda p: AdamW(p, lr=0.0003),
    "Adagrad": lambda p: Adagrad(p, lr=0.001),
    "RMSprop": lambda p: RMSprop(p, lr=0.0001),
    "NAdam": lambda p: NAdam(p, lr=0.0003),
}


class Factors(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        adaptive = next(callback for callback in trainer.callbacks if isinstance(callback, LayerAdaptiveLR))
        self.seen.append(dict(adaptive.factors))


def assert_equal(make: Any, kind: str, stages: list[str]) -> None:
    model, factors = Flat(make), Factors()
    adaptive = LayerAdaptiveLR(kind, *BOUNDS[kind], stages=stages or None)
    running = fit(model, [adaptive, factors], epochs=10, steps=5, limit_val_batches=0)
    weights, used = by_hand(make, kind, stages)
    for name, value in tensors(model).items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6)
    names = stages or ["group 0"]
    for seen, expected in zip(factors.seen[1:], used[1:], strict=True):  # nothing is said while there is no state
        assert [seen[name] for name in names] == pytest.approx(expected, rel=1e-5)
    assert len({round(factor, 4) for each in used for factor in each}) > STEPS // 2, "the factors hardly vary"
    plain = make([nn.Parameter(torch.ones(1))]).defaults["lr"]
    assert [float(g["lr"]) for g in running.optimizers[0].param_groups] == pytest.approx(
        [plain * 0.98**STEPS] * len(names)
    )


@pytest.mark.parametrize("make", adam_family())
def test_moment_ratios_are_those_of_the_definition(make: Any) -> None:
    assert_equal(make, "moment_ratio", STAGES)


@pytest.mark.parametrize("make", ANY.values(), ids=ANY)
def test_trust_ratios_are_those_of_the_definition_with_any_optimizer(make: Any) -> None:
    assert_equal(make, "trust_ratio", STAGES)


@pytest.mark.parametrize("make", [ANY["SGD"], ANY["AdamW"]])
def test_gradient_ratios_are_those_of_the_definition(make: Any) -> None:
    assert_equal(make, "gradient_ratio", STAGES)


def test_by_the_epoch_the_factors_are_those_of_the_mean_ratios_of_the_epoch_before() -> None:
    ratios: list[list[float]] = []

    def note(_: Any, module: Any) -> None:
        parts = [list(getattr(module, stage).parameters()) for stage in STAGES]
        ratios.append([gradient_ratio(None, None, part) for part in parts])

    factors, spy = Factors(), Spy("on_before_optimizer_step", note)
    adaptive = LayerAdaptiveLR("gradient_ratio", stages=STAGES, every="epoch", verbose=False)
    fit(Flat(ANY["SGD"]), [adaptive, factors, spy], epochs=3, steps=4, limit_val_batches=0)
    for step, seen in enumerate(factors.seen):
        before = ratios[(step // 4 - 1) * 4 : step // 4 * 4] if step >= 4 else []
        means = [sum(column) / 4 for column in zip(*before, strict=True)]
        expected = {stage: mean / max(means) for stage, mean in zip(STAGES, means, strict=True)} if means else {}
        assert seen == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["moment_ratio", "trust_ratio"])
def test_without_stages_each_group_that_is_there_has_a_factor(kind: str) -> None:
    assert_equal(ANY["AdamW"] if kind == "trust_ratio" else lambda p: AdamW(p, lr=0.02), kind, [])


def test_factors_multiply_with_those_beside_and_follow_their_stages() -> None:
    inside: list[dict[str, float]] = []

    class Seeing(AdamW):
        def _optimizer_step_code(self) -> None:  # called at the end of the update, before the rates are put back
            inside.append({group["name"]: group["lr"] for group in self.param_groups})

    factors = Factors()
    gradual = GradualUnfreeze(STAGES, warmup_steps=2, verbose=False)
    model = Net(lambda m: Seeing(m.parameters(), lr=0.01))
    fit(model, [LayerAdaptiveLR(), gradual, LayerwiseLR(0.5), factors], limit_val_batches=0)
    two, three = ["head", "mid"], ["head", "mid", "stem"]
    assert [sorted(each) for each in factors.seen] == [[], ["head"], two, two, three, three]
    for step, (seen, rates) in enumerate(zip(factors.seen, inside, strict=True)):
        for depth, name in enumerate(STAGES):
            ramp = 0.5 if depth and step == 2 * depth else 1.0  # its first step
            if name in seen:
                assert rates[name] == pytest.approx(0.01 * 0.5**depth * ramp * seen[name])


@pytest.mark.parametrize("ratios", [moment_ratios, trust_ratios, gradient_ratios])
def test_figures_are_computed_without_waiting_for_the_device(ratios: Any) -> None:
    model = Flat(ANY["AdamW"])
    optimizer = AdamW(model.parameters())
    model.training_step(Batches(1).all[0], 0).backward()
    optimizer.step()
    waited: list[Any] = []

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten._local_scalar_dense.default and not is_counter(args[0]):
                waited.append(function)
            return function(*args, **kwargs or {})

    def is_counter(tensor: Any) -> bool:  # counters of steps are on the host
        return any(tensor is state["step"] for state in optimizer.state.values())

    with Waits():
        assert ratios(optimizer).dim() == 1
    assert not waited


def test_nothing_to_compute_from_leaves_the_rate_alone() -> None:
    class Zero(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * 0

    adaptive = LayerAdaptiveLR("trust_ratio", min_factor=2.0)
    fit(Zero(lambda m: SGD(m.parameters(), lr=0.1)), [adaptive], limit_val_batches=0)
    assert adaptive.factors == {"group 0": 1.0}


def test_a_scaled_gradient_gives_the_factor_of_the_plain_one() -> None:
    parameter = nn.Parameter(torch.full((4,), 2.0))
    optimizer = SGD([parameter], lr=0.1)
    parameter.grad = torch.full((4,), 8.0)
    assert trust_ratios(optimizer).item() == 0.25
    optimizer.grad_scale = torch.tensor(16.0)  # as GradScaler tells a fused optimizer
    assert trust_ratios(optimizer).item() == 4.0


@pytest.mark.parametrize("cls", [SGD, Adagrad, RMSprop, Adadelta, Adamax])
def test_optimizers_without_moments_are_refused_before_training(cls: Any) -> None:
    model = NeverTrains(lambda m: cls(m.parameters(), lr=0.1))
    with pytest.raises(OptimizerError, match=rf"LayerAdaptiveLR: kind='moment_ratio'.*{cls.__name__} has no exp_avg"):
        fit(model, [LayerAdaptiveLR()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lars"}, "kind must be one of 'moment_ratio', 'trust_ratio', 'gradient_ratio'"),
        ({"every": "epoch"}, "every='epoch' can be used only with kind='gradient_ratio'"),
        ({"every": "batch", "kind": "gradient_ratio"}, "every must be one of 'step', 'epoch'"),
        ({"min_factor": -0.1}, "0 <= min_factor <= max_factor"),
        ({"min_factor": 2.0, "max_factor": 1.0}, "0 <= min_factor <= max_factor"),
        ({"max_factor": float("inf")}, "max_factor must be a finite number"),
        ({"stages": []}, "is empty"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"LayerAdaptiveLR.*{message}"):
        LayerAdaptiveLR(**options)


def test_factors_are_logged_at_the_logging_interval(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path)
    running = trainer([LayerAdaptiveLR(stages=STAGES)], 1, logger=logger, log_every_n_steps=3)
    running.fit(Net(lambda m: AdamW(m.parameters())), Batches(7), Batches(1))
    with Path(logger.log_dir, "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["factor/head"]]
    assert [row["step"] for row in logged] == ["2", "5"]
    assert {"factor/head", "factor/mid", "factor/stem"} <= set(logged[0])


def test_tasks_have_factors_of_their_own() -> None:
    adaptive = LayerAdaptiveLR()
    trainer([TaskFreeze(TASKS, verbose=False), adaptive], 1).fit(TwoTasks(), Tasks("abab"))
    assert set(adaptive.factors) == {"a", "b", "rest"}


def test_factors_are_logged_once_a_step_and_for_what_trains_only(tmp_path: Any) -> None:
    class Noting(CSVLogger):
        seen: list[tuple[int, set[str]]]

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if "factor/head" in metrics:
                self.seen.append((step, {name.removeprefix("factor/") for name in metrics}))

    logger = Noting(tmp_path)
    logger.seen = []
    callbacks = [LayerAdaptiveLR("trust_ratio", stages=STAGES), FreezeLayers("stem", 1)]
    fit(Net(), callbacks, epochs=2, steps=4, accumulate_grad_batches=2, logger=logger, log_every_n_steps=1)
    some, all_three = {"head", "mid"}, {"head", "mid", "stem"}
    assert logger.seen == [(0, all_three), (1, all_three), (2, some), (3, some)]
