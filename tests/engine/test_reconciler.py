"""The one place that mutates, against what the contract says in plain words, on random models and schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR, PlanError, Stage
from lightning_freeze.engine.modes import is_held
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.schedule.moments import Progress


class Parent(nn.Module):
    """A module with a parameter of its own beside its children, as a transformer with its positions."""

    def __init__(self, children: list[nn.Module]) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))
        for place, child in enumerate(children):
            self.add_module(f"c{place}", child)


LEAVES = st.sampled_from(
    [
        lambda: nn.Linear(1, 1),
        lambda: nn.BatchNorm1d(1),
        lambda: nn.BatchNorm1d(1, affine=False),
        nn.Dropout,
        nn.ReLU,
        lambda: nn.Sequential(nn.Dropout(), nn.ReLU()),
    ]
).map(lambda make: make())
TREES = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.lists(children, min_size=1, max_size=4).map(lambda parts: nn.Sequential(*parts)),
        st.lists(children, min_size=1, max_size=4).map(Parent),
        st.lists(children, min_size=1, max_size=2).map(lambda parts: nn.Sequential(*parts, parts[0])),  # used twice
    ),
    max_leaves=12,
)


class Model(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(1, 1)


@st.composite
def models(draw: Any) -> tuple[nn.Module, list[FreezeLayers]]:
    model = Model(draw(TREES))
    names = [name for name, _ in model.body.named_parameters(prefix="body")]
    policies = []
    if names:
        modules = [
            name for name, module in model.body.named_modules(prefix="body") if any(True for _ in module.parameters())
        ]
        for _ in range(draw(st.integers(1, 3))):
            patterns = draw(st.lists(st.sampled_from(names + modules), min_size=1, max_size=4))
            start = draw(st.integers(0, 3))
            stop = draw(st.none() | st.integers(start + 1, 5))
            policies.append(FreezeLayers(patterns, start, stop, eval_frozen=draw(st.booleans())))
        for name in draw(st.lists(st.sampled_from(names), max_size=2)):
            model.get_parameter(name).requires_grad_(False)
    return model, policies


def frozen_by(model: nn.Module, policy: FreezeLayers, epoch: int) -> set[int]:
    """Identities of the parameters that a policy freezes in an epoch."""
    if not policy.start <= epoch < (policy.stop or 99):
        return set()
    return {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        for pattern in policy.patterns
        if name == pattern or name.startswith(f"{pattern}.")
    }


def in_eval(model: nn.Module, mine: set[int], trainable: set[int]) -> set[int]:
    """What the contract says about eval mode, word by word."""

    def all_frozen(module: nn.Module) -> bool:
        parameters = {id(parameter) for parameter in module.parameters()}
        return bool(parameters & mine) and not parameters & trainable

    everything = list(model.named_modules(remove_duplicate=False))
    held = {name for name, module in everything if all_frozen(module)}
    inside = {name for name, _ in everything if any(name == top or name.startswith(f"{top}.") for top in held)}
    chosen = set(inside)
    for place, (name, module) in enumerate(everything):
        if not any(True for _ in module.parameters()):
            owners = [
                (other < place, other_name)
                for other, (other_name, owner) in enumerate(everything)
                if owner._parameters and any(p is not None for p in owner._parameters.values())
                if not name.startswith(f"{other_name}.") and other_name
            ]
            before = [other for earlier, other in owners if earlier]
            after = [other for earlier, other in owners if not earlier]
            if before and after and before[-1] in inside and after[0] in inside:
                chosen.add(name)
    return {id(module) for name, module in everything if name in chosen}


def state_of(model: nn.Module) -> Any:
    flags = [parameter.requires_grad for parameter in model.parameters()]
    return flags, [(module.training, is_held(module)) for module in model.modules()]


@settings(max_examples=150, deadline=None)
@given(models(), st.lists(st.integers(0, 5), min_size=1, max_size=5), st.booleans())
def test_flags_groups_and_modes_are_what_the_contract_says_at_any_progress(
    drawn: Any, epochs: list[int], norms: bool
) -> None:
    model, policies = drawn
    layers = {id(module) for module in model.modules() if isinstance(module, nn.BatchNorm1d)}
    before = state_of(model)
    required = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    optimizer = SGD(model.parameters(), lr=0.1)
    run = Reconciler(model, [*policies, *([BatchNormEval()] if norms and layers else [])], [optimizer])
    for epoch in epochs:  # in any order: what is wanted depends on the progress alone
        run.reconcile(Progress(epoch=epoch))
        trainable = required.difference(*(frozen_by(model, policy, epoch) for policy in policies))
        assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == trainable
        assert {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} == trainable
        held = set(layers) if norms else set()
        for policy in policies:
            if policy.eval_frozen:
                held |= in_eval(model, frozen_by(model, policy, epoch), trainable)
        assert {id(module) for module in model.modules() if not module.training} == held
        assert not run.reconcile(Progress(epoch=epoch))  # a second call changes nothing
    run.close()
    assert state_of(model) == before
    run.close()
    assert state_of(model) == before


def test_when_nothing_would_train_nothing_has_changed() -> None:
    model = Model(nn.Linear(1, 1))
    run = Reconciler(model, [FreezeLayers("body"), FreezeLayers("head", 1)], [SGD(model.parameters(), lr=0.1)])
    run.reconcile(Progress())
    state = state_of(model)
    with pytest.raises(PlanError, match="nothing would train in epoch 1, step 7"):
        run.reconcile(Progress(1, 7))
    assert state_of(model) == state


def test_it_serves_a_plain_training_loop() -> None:
    """No Trainer: the caller says where the run is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = Reconciler(model, [GradualUnfreeze(["2", "0", "1"], verbose=False)], [optimizer])
    for epoch in range(3):
        run.reconcile(Progress(epoch=epoch))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer.zero_grad()
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        moved = {
            name.partition(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
        }
        assert moved == [{"2"}, {"0", "2"}, {"0", "1", "2"}][epoch]
    run.close()


def test_two_policies_may_mean_different_parameters_by_one_name() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    gradual = GradualUnfreeze([Stage("top", ["2"]), Stage("late", ["1"])])
    rates = LayerwiseLR(1.0, stages=[Stage("late", ["0"]), Stage("top", ["2"])])
    run = Reconciler(model, [gradual, rates], [SGD(model.parameters(), lr=0.1)])
    slots = {tuple(slot.names): slot.label for slot in run.optimizers[0].slots}
    assert slots == {("0.weight", "0.bias"): "late", ("1.weight", "1.bias"): "late", ("2.weight", "2.bias"): "top"}


@pytest.mark.parametrize(("placement", "on_host"), [("keep", False), ("cpu", True), ("drop", None)])
def test_optimizer_state_of_what_is_frozen_from_the_start_goes_where_it_was_told(placement: Any, on_host: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.Adagrad(model.parameters(), initial_accumulator_value=0.5)  # has state from the start
    run = Reconciler(model, [FreezeLayers("0", optimizer_state=placement)], [optimizer])
    run.reconcile(Progress())
    assert model[0].weight not in optimizer.state
    assert model[1].weight in optimizer.state
    aside = run.record()["optimizers"][0]["aside"]
    assert sorted(aside) == ([] if on_host is None else ["0.bias", "0.weight"])
    for entry in aside.values():
        assert entry["on_host"] == on_host
        assert (entry["state"]["sum"] == 0.5).all()


def test_loading_says_what_it_changed_and_a_second_time_nothing() -> None:
    def run() -> Reconciler:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        return Reconciler(model, [GradualUnfreeze(["1", "0"])], [SGD(model.parameters(), 0.1)])

    first, second = run(), run()
    first.reconcile(Progress())
    change = second.load(first.record())
    assert change.frozen == ("0.weight", "0.bias")
    assert change.unfrozen == ()
    assert not second.load(first.record())
