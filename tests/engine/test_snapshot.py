"""What was taken comes back, in place and on its own device, with the optimizer state that belonged to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Net, tensors
from torch.optim import AdamW

from lightning_freeze.engine.snapshot import restore, take
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.optim.slotted import SlottedOptimizer


def step(model: Net, optimizer: AdamW) -> None:
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_parameters_buffers_and_state_come_back_and_a_snapshot_may_be_used_twice() -> None:
    model = Net()
    optimizer = AdamW(model.parameters(), lr=0.1)
    index = ModelIndex(model)
    slotted = SlottedOptimizer(optimizer, [], index.name_of, {}, {})
    without_state = take(index, set(index.parameters), [slotted])
    first = tensors(model)
    step(model, optimizer)
    snapshot, places = (
        take(index, set(index.parameters), [slotted]),
        [parameter.data_ptr() for parameter in model.parameters()],
    )
    second = tensors(model)
    state = optimizer.state_dict()["state"]
    state = {key: {name: value.clone() for name, value in entry.items()} for key, entry in state.items()}
    for _ in range(2):
        step(model, optimizer)
        restore(snapshot, index, [slotted])
        assert all(torch.equal(value, second[name]) for name, value in model.state_dict().items())
        now = optimizer.state_dict()["state"]
        assert all(torch.equal(value, now[key][name]) for key, entry in state.items() for name, value in entry.items())
    restore(without_state, index, [slotted])
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    assert optimizer.state_dict()["state"] == {}
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_only_what_trained_is_kept() -> None:
    model = Net()
    index = ModelIndex(model)
    snapshot = take(index, {"head.bias"}, [])
    assert list(snapshot["parameters"]) == ["head.bias"]
    assert set(snapshot["buffers"]) == {name for name, _ in model.named_buffers()}


def test_a_buffer_that_was_replaced_meanwhile_is_the_one_that_comes_back() -> None:
    model = Net()
    index = ModelIndex(model)
    model.stem[1].running_mean = torch.ones(4)
    snapshot = take(index, set(), [])
    model.stem[1].running_mean = torch.zeros(4)
    restore(snapshot, index, [])
    assert model.stem[1].running_mean.tolist() == [1.0] * 4


@pytest.mark.parametrize("meanwhile", [torch.ones(3), None, torch.ones(1).expand(2), "made in validation"])
def test_a_buffer_that_cannot_be_written_in_place_meanwhile_comes_back(meanwhile: Any) -> None:
    model = Net()
    model.register_buffer("seen", torch.arange(2.0))
    index = ModelIndex(model)
    with torch.inference_mode():  # as in `on_validation_end`
        snapshot = take(index, set(), [])
        model.seen = torch.zeros(2) if isinstance(meanwhile, str) else meanwhile
    restore(snapshot, index, [])
    assert model.seen.tolist() == [0.0, 1.0]
    model.seen += 1
    assert snapshot["buffers"]["seen"].tolist() == [0.0, 1.0]
