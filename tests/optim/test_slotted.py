"""A split keeps each parameter exactly once, in order; slots stay constant in number, order and name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import STAGES, Net, Spy, fit
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adagrad, AdamW
from torch.optim.lr_scheduler import StepLR

from lightning_freeze import FreezeLayers, GradualUnfreeze, LayerwiseLR, OptimizerError
from lightning_freeze.optim.slotted import SlottedOptimizer

COUNT = 8
LABELS = st.sampled_from(["", "a", "b", "a+b"])


@st.composite
def splits(draw: Any) -> Any:
    """An optimizer over some parameters, in the user's groups, each parameter with a label and a factor."""
    parameters = {f"p{k}": nn.Parameter(torch.full((2,), float(k))) for k in range(COUNT)}
    order = draw(st.permutations(list(parameters)))
    cuts = sorted(draw(st.sets(st.integers(1, COUNT - 1), max_size=3)))
    names = [order[start:stop] for start, stop in zip([0, *cuts], [*cuts, COUNT], strict=True)]
    given_names = draw(
        st.lists(
            st.sampled_from([None, "decay", "a", "a/decay", "rest"]),
            min_size=4,
            max_size=4,
            unique_by=lambda n: n or object(),
        )
    )
    groups = [
        {"params": [parameters[name] for name in part], "lr": 0.1 * (k + 1)}
        | ({"name": given_names[k]} if given_names[k] else {})
        for k, part in enumerate(names)
    ]
    labels = {name: draw(LABELS) for name in parameters}
    factors = {name: draw(st.sampled_from([1.0, 0.5, 2.0])) for name in parameters}
    return parameters, SGD(groups, lr=0.1, momentum=0.9), names, labels, factors


def split(drawn: Any) -> SlottedOptimizer:
    parameters, optimizer, _, labels, factors = drawn
    names = {id(parameter): name for name, parameter in parameters.items()}
    return SlottedOptimizer(optimizer, [], lambda parameter: names.get(id(parameter)), labels, factors)


def contents(slotted: SlottedOptimizer) -> list[list[int]]:
    return [[id(parameter) for parameter in group["params"]] for group in slotted.optimizer.param_groups]


@given(splits())
def test_a_split_keeps_each_parameter_exactly_once_and_in_order(drawn: Any) -> None:
    parameters, optimizer, given_groups, labels, factors = drawn
    slotted = split(drawn)
    assert len(slotted.slots) == len(optimizer.param_groups)
    for origin, names in enumerate(given_groups):
        slots = [slot for slot in slotted.slots if slot.origin == origin]
        assert sorted(name for slot in slots for name in slot.names) == sorted(names)
        assert all(slot.names == [name for name in names if name in slot.names] for slot in slots)
    for slot, group in zip(slotted.slots, optimizer.param_groups, strict=True):
        assert group["params"] == [parameters[name] for name in slot.names] or len(slot.names) != len(group["params"])
        assert [id(p) for p in group["params"]] == [id(parameters[name]) for name in slot.names]
        assert group["lr"] == 0.1 * (slot.origin + 1) * slot.factor
        assert {labels[name] for name in slot.names} == {slot.label}
        assert {factors[name] for name in slot.names} == {slot.factor}
    origins = [slot.origin for slot in slotted.slots]
    assert origins == sorted(origins)


@given(splits())
def test_slots_have_names_of_their_own_as_the_learning_rate_monitor_demands(drawn: Any) -> None:
    slotted = split(drawn)
    names = [group.get("name", f"pg{place}") for place, group in enumerate(slotted.optimizer.param_groups, start=1)]
    assert len(set(names)) == len(names)


@given(splits(), st.lists(st.sets(st.integers(0, COUNT - 1), min_size=1), max_size=5))
def test_slots_are_filled_and_emptied_but_never_come_or_go(drawn: Any, trainable: list[set[int]]) -> None:
    parameters, optimizer, *_ = drawn
    slotted = split(drawn)
    names, full = [slot.name for slot in slotted.slots], contents(slotted)
    now = set(parameters)
    for wanted in [{f"p{k}" for k in ks} for ks in trainable]:
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        slotted.refill(wanted - now, dict.fromkeys(now - wanted, "keep"))
        now = wanted
        held = {id(parameters[name]) for name in wanted}
        assert contents(slotted) == [[one for one in slot if one in held] for slot in full]
        assert [group.get("name") for group in optimizer.param_groups] == names or len(names) == 1
        assert {id(parameter) for parameter in optimizer.state} <= held
        assert len(optimizer.state_dict()["param_groups"]) == len(names)
    slotted.refill(set(parameters) - now, {})
    assert contents(slotted) == full
    trained = {f"p{k}" for ks in trainable for k in ks} if trainable else set()
    assert all(
        parameters[name] in optimizer.state for name in trained if trainable and len(trainable) > 1 and name in now
    )


def test_filling_what_is_full_changes_nothing() -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    slotted = SlottedOptimizer(optimizer, [], lambda p: names.get(id(p)), {}, {})
    assert slotted.refill([], {}) == []


def test_state_is_set_aside_on_the_host_or_forgotten_on_request() -> None:
    parameter, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([parameter, other], lr=0.1)
    slotted = SlottedOptimizer(optimizer, [], lambda p: "p" if p is parameter else "q", {}, {})
    parameter.grad = other.grad = torch.ones(2)
    optimizer.step()
    slotted.refill([], {"p": "cpu", "q": "drop"})
    record = slotted.record()
    assert list(record["aside"]) == ["p"]
    assert optimizer.state_dict()["state"] == {}
    slotted.refill(["p", "q"], {})
    assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"}
    assert other not in optimizer.state
    assert slotted.record()["aside"] == {}


def test_adagrads_state_starts_with_the_users_initial_value() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = Adagrad([parameter], lr=0.1, initial_accumulator_value=0.5)
    slotted = SlottedOptimizer(optimizer, [], lambda p: "p", {"p": "stage"}, {"p": 0.5})
    slotted.refill([], {"p": "drop"})
    slotted.refill(["p"], {})
    assert optimizer.state[parameter]["sum"].tolist() == [0.5, 0.5]


class Counting(torch.optim.Optimizer):
    """Counts its steps in the group, from the first step on, as LAMB does."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1.0})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1


def counts(slotted: SlottedOptimizer) -> list[Any]:
    return [group.get("step") for group in slotted.optimizer.param_groups]


def test_the_count_of_a_group_stands_still_while_its_slot_is_empty_also_over_a_checkpoint() -> None:
    def counting() -> SlottedOptimizer:
        head, stem = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        names = {id(head): "head", id(stem): "stem"}
        return SlottedOptimizer(
            Counting([head, stem]), [], lambda p: names[id(p)], {"head": "head", "stem": "stem"}, {}
        )

    slotted = counting()
    slotted.refill((), {"stem": "keep"})
    for _ in range(5):
        slotted.optimizer.step()
    slotted.refill(("stem",), {})
    assert counts(slotted) == [5, None]  # as if it were new
    slotted.optimizer.step()
    slotted.refill((), {"stem": "keep"})
    slotted.optimizer.step()
    again = counting()
    again.refill((), {"stem": "keep"})
    again.load_record(slotted.record())
    again.optimizer.load_state_dict(slotted.optimizer.state_dict())
    for one in (slotted, again):
        one.refill(("stem",), {})
        assert counts(one) == [7, 1]


def test_a_group_of_the_user_that_is_empty_is_kept() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = SGD([{"params": []}, {"params": [parameter], "lr": 0.3}], lr=0.1)
    slotted = SlottedOptimizer(optimizer, [], lambda p: "p", {"p": "stage"}, {})
    assert [(slot.name, slot.names) for slot in slotted.slots] == [("pg1", []), ("stage", ["p"])]


def test_parameters_of_one_label_but_of_different_kinds_have_slots_of_their_own() -> None:
    parameters = {name: nn.Parameter(torch.ones(2)) for name in "abc"}
    names = {id(parameter): name for name, parameter in parameters.items()}
    labels, kinds = dict.fromkeys("abc", "late"), {"a": ("late", ""), "b": ("late", "late"), "c": ("", "late")}
    slotted = SlottedOptimizer(
        SGD(parameters.values(), lr=0.1), [], lambda p: names.get(id(p)), labels, dict.fromkeys("abc", 0.5), kinds
    )
    assert [slot.names for slot in slotted.slots] == [["a"], ["b"], ["c"]]
    assert len({slot.name for slot in slotted.slots}) == 3


def test_a_scheduler_made_for_other_groups_is_refused() -> None:
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SGD([one], lr=0.1)
    scheduler = StepLR(optimizer, 1)
    optimizer.add_param_group({"params": [other]})
    with pytest.raises(OptimizerError, match=r"StepLR\.base_lrs has 1 entries for the 2 groups"):
        SlottedOptimizer(optimizer, [scheduler], lambda p: "p" if p is one else "q", {}, {})


def test_number_order_and_names_of_slots_are_the_same_in_every_epoch() -> None:
    def look(trainer: Any, _: Any) -> Any:
        return [(group["name"], group["lr"]) for group in trainer.optimizers[0].param_groups]

    callbacks = [
        GradualUnfreeze(STAGES, verbose=False),
        LayerwiseLR(0.5),
        LayerwiseLR(multipliers={"mid.0": 0.1, "head.bias": 10.0}),
        FreezeLayers("head", 2, 3),
        Spy("on_train_batch_end", look),
    ]
    fit(Net(), callbacks, epochs=4)
    assert len(callbacks[-1].seen) == 8
    assert all(seen == callbacks[-1].seen[0] for seen in callbacks[-1].seen)
    names = dict(callbacks[-1].seen[0])
    assert len(names) == 5
    assert names["mid"] == pytest.approx(0.05)
    assert names["mid.0"] == pytest.approx(0.005)


@pytest.mark.parametrize("placement", ["keep", "cpu", "drop"])
def test_other_state_takes_the_place_of_what_is_set_aside_and_of_nothing_else(placement: Any) -> None:
    weight, bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([weight, bias], lr=0.1)
    weight.grad, bias.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    slotted = SlottedOptimizer(optimizer, [], lambda p: "w" if p is weight else "b", {}, {})
    slotted.refill([], {"w": placement})
    slotted.set_state("w", {"exp_avg": torch.full((2,), 7.0)})
    state = slotted.state_of("w")
    if placement == "drop":
        assert state is None
    else:
        assert state is not None
        assert torch.equal(state["exp_avg"], torch.full((2,), 7.0))
    slotted.set_state("b", None)
    assert slotted.state_of("b") is None
    slotted.set_state("w", None)
    assert slotted.state_of("w") is None
