"""The optimizer state of one parameter: to the host and back, and made anew by an optimizer of the same kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, SparseAdam

from lightning_freeze.optim.state import (
    COUNTERS,
    aside_record,
    fresh_optimizer,
    from_host,
    set_counters,
    state_after_step,
    to_host,
)


class AnyOptions(Adam):
    """Takes its options as `**kwargs` only."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)


class TwoArguments(SGD):
    """Its constructor needs what no group holds."""

    def __init__(self, params: Any, model: nn.Module) -> None:
        super().__init__(params, lr=0.1)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 3))


@pytest.mark.parametrize("cls", [Adam, AnyOptions])
def test_a_fresh_optimizer_has_the_same_options(cls: Any) -> None:
    fresh = fresh_optimizer(cls([parameter()], lr=0.3, betas=(0.5, 0.6)), other := parameter())
    assert type(fresh) is cls
    assert fresh.param_groups[0]["params"] == [other]
    assert (fresh.param_groups[0]["lr"], fresh.param_groups[0]["betas"]) == (0.3, (0.5, 0.6))


def test_an_optimizer_with_another_constructor_cannot_be_made() -> None:
    assert fresh_optimizer(TwoArguments([parameter()], nn.Linear(1, 1)), parameter()) is None
    assert state_after_step(TwoArguments([parameter()], nn.Linear(1, 1))) is None


@pytest.mark.parametrize(
    ("optimizer", "keys"),
    [
        (AdamW([parameter()], fused=True), {"step", "exp_avg", "exp_avg_sq"}),
        (Adam([parameter()], amsgrad=True), {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
        (SGD([parameter()], lr=0.1, momentum=0.9), {"momentum_buffer"}),
        (Adagrad([parameter()]), {"step", "sum"}),
    ],
    ids=["fused", "amsgrad", "SGD", "Adagrad"],
)
def test_the_state_after_a_step_is_that_of_the_real_optimizer(optimizer: Any, keys: set[str]) -> None:
    before = [dict(state) for state in optimizer.state.values()]
    found = state_after_step(optimizer, torch.bfloat16)
    assert found is not None
    assert {key for key, value in found.items() if value is not None} == keys
    assert [dict(state) for state in optimizer.state.values()] == before, "the optimizer itself is not touched"


def test_an_option_set_in_the_group_counts() -> None:
    optimizer = SGD([parameter()], lr=0.1)
    optimizer.param_groups[0]["momentum"] = 0.9
    assert state_after_step(optimizer) is not None
    assert "momentum_buffer" in (state_after_step(optimizer) or {})


def test_an_optimizer_that_cannot_step_with_dense_gradients_is_not_asked() -> None:
    assert state_after_step(SparseAdam([parameter()])) is None


@pytest.mark.parametrize("step", [torch.tensor(4.0), 4], ids=["tensor", "int"])
def test_state_goes_to_the_host_and_comes_back_as_it_was(step: Any) -> None:
    state = {"step": step, "exp_avg": torch.arange(6.0).view(2, 3), "none": None}
    on_host, devices = to_host(state)
    assert devices is not None
    back = from_host(on_host, devices, torch.device("cpu"))
    assert back.keys() == state.keys()
    assert type(back["step"]) is type(step)
    assert back["step"] == step
    assert torch.equal(back["exp_avg"], state["exp_avg"])
    assert from_host(state, None, torch.device("cpu")) is state


def test_the_record_says_where_the_state_is() -> None:
    state: dict[str, Any] = {"exp_avg": torch.ones(2), "step": 3}
    on_host = aside_record(*to_host(state))
    assert on_host["on_host"]
    assert not aside_record(state, None)["on_host"]
    assert sorted(map(str, on_host["devices"])) == ["None", "cpu"]
    assert all(isinstance(value, Tensor | int) for value in on_host["state"].values())


def test_counters_of_a_group_are_put_back_and_none_leaves_them() -> None:
    group = {"lr": 0.1, "step": 5, "k": 7}
    set_counters(group, None)
    assert group == {"lr": 0.1, "step": 5, "k": 7}
    set_counters(group, {"step": 2})
    assert group == {"lr": 0.1, "step": 2}
    assert "weight_sum" in COUNTERS


def test_the_trial_parameter_has_24_elements_of_the_dtype_that_is_asked_for() -> None:
    found = state_after_step(AdamW([parameter()]), torch.bfloat16)
    assert found is not None
    assert (found["exp_avg"].numel(), found["exp_avg"].dtype) == (24, torch.bfloat16)
