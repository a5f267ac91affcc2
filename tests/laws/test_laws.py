"""Laws that hold for any model, any schedule and any point of interruption."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from lightning_freeze import (
    FreezeError,
    FreezeLayers,
    GradualUnfreeze,
    LayerwiseLR,
    Stage,
    discover_stages,
    fingerprint,
    select,
)
from lightning_freeze.auditing.violations import audit
from lightning_freeze.auditing.watcher import Watcher
from lightning_freeze.cli import main
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.schedule.moments import Progress

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# ---- models


class Scaled(nn.Module):
    """A parameter of its own beside its child."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs) * self.scale


LEAVES = [
    lambda: nn.Linear(4, 4),
    lambda: nn.Linear(4, 4, bias=False),
    lambda: nn.BatchNorm1d(4),
    lambda: nn.LayerNorm(4),
    lambda: nn.Tanh(),
]
leaf = st.sampled_from(LEAVES).map(lambda make: make())
trees = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: nn.Sequential(*parts)), inner.map(Scaled)
    ),
    max_leaves=6,
)
models = trees.map(lambda tree: nn.Sequential(nn.Linear(4, 4), tree, nn.Linear(4, 2)))


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@st.composite
def models_and_patterns(draw: st.DrawFn) -> tuple[nn.Module, list[str]]:
    """A model, and patterns that match something in it: names, modules, globs, expressions, some taken away again."""
    model = draw(models)
    modules = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    plain = st.sampled_from(names(model) + modules)
    pattern = st.one_of(
        plain, plain.map(lambda name: f"{name[0]}*"), plain.map(lambda name: f"re:{re.escape(name[0])}.*")
    )
    first = draw(pattern)
    rest = draw(st.lists(st.tuples(pattern, st.booleans()), max_size=3))
    return model, [first, *(f"!{one}" if negated else one for one, negated in rest)]


# ---- laws of selections and stages


@few
@given(models_and_patterns())
def test_a_selection_is_ordered_and_its_complement_is_the_rest(drawn: tuple[nn.Module, list[str]]) -> None:
    model, patterns = drawn
    chosen, everything = select(model, patterns), names(model)
    assert chosen == [name for name in everything if name in set(chosen)]
    positive = select(model, patterns[0])
    rest = select(model, ["*", f"!{patterns[0]}"])
    assert sorted(positive + rest) == sorted(everything)
    assert select(model, chosen or "*") == (chosen or everything)


@few
@given(models, st.one_of(st.none(), st.integers(1, 5)))
def test_discovered_stages_hold_each_parameter_once(model: nn.Module, limit: int | None) -> None:
    stages = discover_stages(model, torch.zeros(2, 4), limit)
    found = [name for stage in stages for name in select(model, stage.patterns)]
    assert sorted(found) == sorted(names(model))
    assert len(stages) <= (limit or 40)
    assert len({stage.name for stage in stages}) == len(stages)


@st.composite
def cut(draw: st.DrawFn, model: nn.Module) -> list[Stage]:
    """The parameters of a model in one to four stages, some of them perhaps in none."""
    everything = draw(st.permutations(names(model)))
    marks = draw(st.lists(st.integers(1, len(everything)), min_size=1, max_size=4, unique=True).map(sorted))
    bounds = zip([0, *marks], marks, strict=False)
    return [Stage(f"s{place}", list(everything[start:stop])) for place, (start, stop) in enumerate(bounds)]


OPTIMIZERS: list[Any] = [
    lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01),
    lambda groups: torch.optim.AdamW(groups, lr=0.01),
    lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5),
    lambda groups: torch.optim.Adagrad(groups, lr=0.05),
    lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
]
SCHEDULERS: list[Any] = [
    lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8),
    lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, 100, cycle_momentum=False),
    lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
]


class Plan:
    """Everything that makes a run, so that it can be made a second time."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.model = draw(models)
        self.groups = draw(st.integers(1, 2))
        self.optimizer, self.scheduler = draw(st.sampled_from(OPTIMIZERS)), draw(st.sampled_from(SCHEDULERS))
        stages = draw(cut(self.model))
        kind = draw(st.sampled_from(["epochs", "steps", "at", "curve", "none"]))
        self.trigger: Any = {
            "epochs": {"every_n_epochs": draw(st.integers(1, 2))},
            "steps": {"every_n_train_steps": draw(st.integers(1, 5))},
            "at": {"at": [0, *sorted(draw(st.lists(st.integers(0, 4), min_size=3, max_size=3)))][: len(stages)]},
            "curve": {"curve": "cosine"},
            "none": None,
        }[kind]
        self.stages, self.warmup = stages, draw(st.integers(0, 3))
        self.decay = draw(st.sampled_from([None, 0.5]))
        self.state = draw(st.sampled_from(["keep", "drop", "cpu"]))
        start = draw(st.integers(1, 8))
        window = draw(st.one_of(st.none(), st.just((start, start + draw(st.integers(1, 5))))))
        self.window = window if len(names(self.model)) > 2 else None

    def policies(self) -> list[Any]:
        found: list[Any] = []
        if self.trigger is not None:
            found.append(GradualUnfreeze(self.stages, warmup_steps=self.warmup, **self.trigger))
        if self.decay is not None:
            found.append(LayerwiseLR(self.decay, stages=self.stages))
        if self.window is not None:
            start, stop = self.window
            patterns = names(self.model)[0]
            found.append(FreezeLayers(patterns, start, stop, unit="step", optimizer_state=self.state))
        return found

    def start(self, model: nn.Module) -> tuple[Reconciler, Any, Any]:
        parameters = list(model.parameters())
        parts = [parameters[k :: self.groups] for k in range(self.groups)]
        optimizer = self.optimizer([{"params": part} for part in parts])
        scheduler = self.scheduler(optimizer)
        return Reconciler(model, self.policies(), [optimizer], [scheduler]), optimizer, scheduler


plans = st.composite(lambda draw: Plan(draw))()
EPOCHS, STEPS = 4, 3


@contextlib.contextmanager
def unless_nothing_would_train() -> Iterator[None]:
    """Some schedules freeze everything at some time: refused, and rightly so."""
    try:
        yield
    except FreezeError as error:
        if "nothing would train" not in str(error):
            raise
        reject()


@few
@given(plans, st.lists(st.integers(0, EPOCHS * STEPS), max_size=5))
def test_slots_hold_each_parameter_once_and_reconciling_again_changes_nothing(plan: Any, moments: list[int]) -> None:
    run, optimizer, _ = plan.start(plan.model)
    in_slots = [name for slot in run.optimizers[0].slots for name in slot.names]
    assert sorted(in_slots) == sorted(names(plan.model))
    for step in sorted(moments):
        progress = Progress(step // STEPS, step, EPOCHS * STEPS)
        with unless_nothing_would_train():
            run.reconcile(progress)
        assert not run.reconcile(progress)
        assert audit(plan.model, optimizer) == []
        assert {name for name, p in plan.model.named_parameters() if p.requires_grad} == run.trainable
    run.close()
    assert all(p.requires_grad for p in plan.model.parameters())


def train(plan: Any, model: nn.Module, parts: Any, first: int, last: int, saved: Any = None) -> None:
    """Optimizer steps `first` to `last`, with an audit of every bit that is frozen."""
    run, optimizer, scheduler = parts
    watch = None
    for step in range(first, last):
        run.reconcile(Progress(step // STEPS, step, EPOCHS * STEPS))
        watch = watch or Watcher(lambda: run.view)
        before = {name: value for name, value in fingerprint(model, buffers=False).items() if name not in run.trainable}
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=generator)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        after = fingerprint(model, buffers=False)
        assert {name: after[name] for name in before} == before
    if watch is not None:
        watch.close()


@few
@given(plans, st.integers(1, EPOCHS * STEPS - 1))
def test_an_interrupted_run_ends_as_one_that_was_not_bit_for_bit(plan: Any, interruption: int) -> None:
    buffer = io.BytesIO()
    torch.save(plan.model.state_dict(), buffer)
    begin = lambda: torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)  # noqa: E731
    model = plan.model
    with unless_nothing_would_train():
        parts = plan.start(model)
        train(plan, model, parts, 0, EPOCHS * STEPS)
    parts[0].close()
    whole = fingerprint(model)

    model.load_state_dict(begin())
    parts = plan.start(model)
    train(plan, model, parts, 0, interruption)
    run, optimizer, scheduler = parts
    kept = io.BytesIO()
    states = [model.state_dict(), optimizer.state_dict(), scheduler.state_dict(), run.record()]
    torch.save([states[0], states[1], states[3]], kept)
    run.close()

    weights, moments, record = torch.load(io.BytesIO(kept.getvalue()), weights_only=True)
    parts = plan.start(model)
    model.load_state_dict(begin() | weights)
    parts[0].load(record)
    parts[1].load_state_dict(moments)
    parts[2].load_state_dict(states[2])
    train(plan, model, parts, interruption, EPOCHS * STEPS)
    parts[0].close()
    assert fingerprint(model) == whole


# ---- configs


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.floats(-1, 2),
    st.sampled_from(["*", "head", "mid", "!mid", "re:[", "neck", "auto", "", "epoch", "step", "keep", "always", "min"]),
    st.lists(st.sampled_from(["head", "mid", "stem", "!stem", 1, 0.5, None, []]), max_size=3),
    st.dictionaries(st.sampled_from(["head", "nope", "name"]), st.sampled_from([0.5, -1, "x"]), max_size=2),
)
# Plausible values by key; any of VALUES may stand in for one.
KEYS: dict[str, dict[str, list[Any]]] = {
    "GradualUnfreeze": {
        "stages": ["auto", 2, ["head", "stem"], ["head", ["mid", "!mid.0"]], [{"name": "a", "patterns": "head"}]],
        "every_n_epochs": [1, 2], "every_n_train_steps": [1, 3], "at": [[0, 1], [0, 0.5]], "curve": ["linear"],
        "span": [[0.0, 0.5]], "monitor": ["val"], "patience": [1], "warmup_steps": [2], "stage": [1],
    },
    "FreezeLayers": {
        "patterns": ["mid", ["*", "!head"]], "start": [0, 1], "stop": [2, 3], "unit": ["epoch", "step"],
        "optimizer_state": ["keep", "cpu"], "pattern": ["mid"],
    },
    "LayerwiseLR": {"decay": [0.5], "multipliers": [{"head": 0.5}], "stages": [2, ["head", "mid"]], "rate": [1]},
    "BatchNormEval": {"patterns": ["*", "mid"], "when": ["always", "frozen"], "affine": ["train", "freeze"]},
    "FreezeAudit": {"every_n_epochs": [1], "on_violation": ["warn"], "ignore": ["mid"]},
    "FreezeMonitor": {"log": [True, False]},
    "RotatingUnfreeze": {"stages": [2], "active": [1], "order": ["random"], "seed": [0], "always": ["head"]},
    "Nothing": {"x": [1]},
}  # fmt: skip


def mostly(values: list[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from([True] * 7 + [False]).flatmap(lambda good: st.sampled_from(values) if good else VALUES)


def arguments(name: str) -> st.SearchStrategy[dict[str, Any]]:
    keys = {key: mostly(values) for key, values in KEYS[name].items()}
    first = next(iter(keys))
    return st.fixed_dictionaries({first: keys.pop(first)}, optional=keys).map(
        lambda drawn: dict(list(drawn.items())[:3])
    )


callbacks = st.sampled_from(sorted(KEYS)).flatmap(
    lambda name: st.fixed_dictionaries(
        {"class_path": st.just(f"lightning_freeze.{name}"), "init_args": arguments(name)}
    )
)
trainers = st.fixed_dictionaries(
    {"callbacks": st.lists(callbacks, min_size=1, max_size=2), "max_epochs": st.just(3)},
    optional={"strategy": st.sampled_from(["ddp", "auto", "fsdp", "nope"])},
)
configs = trainers.map(lambda trainer: {"trainer": trainer, "model": {"class_path": "contract.ContractNet"}})


@settings(few, max_examples=40)
@given(config=configs)
def test_a_config_works_or_is_refused_in_one_message(
    config: Any, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(yaml.safe_dump(config))
    status = main(["preview", "--config", str(path)])
    captured = capsys.readouterr()
    assert status in (0, 2)
    assert "Traceback" not in captured.err
    assert bool(captured.err) == (status == 2)
    assert not re.search(r"(Assertion|Key|Index|Attribute|Name|Unbound)\w*Error", captured.err), captured.err
