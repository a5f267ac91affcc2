"""What a block does to a model is undone: tensors, attributes, helpers, modes, gradients, random state."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze.model.undone import undone


class Helper:
    def __init__(self) -> None:
        self.count, self.weights = 0, torch.zeros(2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.register_buffer("center", torch.tensor([torch.nan, 1.0]))
        self.queue: deque[int] = deque([1], maxlen=3)
        self.seen: dict[str, list[int]] = {"steps": []}
        self.kinds = {1}
        self.helper, self.generator = Helper(), torch.Generator().manual_seed(1)
        self.own = random.Random(1)

    def disturb(self) -> None:
        self(torch.rand(3, 2)).sum().backward()
        with torch.no_grad():
            self.layer.weight.add_(1)
            self.layer.bias.data = torch.ones(2)
            self.helper.weights.add_(1)
        self.center = torch.zeros(2)
        self.queue.append(2)
        self.seen["steps"].append(3)
        self.seen["more"] = []
        self.kinds.add(2)
        self.helper.count += 1
        self.extra = random.random() + self.own.random() + float(torch.rand((), generator=self.generator))
        self.eval().requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(inputs))

    def state(self) -> Any:
        tensors = [*self.parameters(), *self.buffers(), self.helper.weights]
        bits = [tensor.detach().clone().view(torch.uint8).tolist() for tensor in tensors if tensor.dim()]
        flags = [(p.requires_grad, p.grad is None, id(p)) for p in self.parameters()]
        plain = [list(self.queue), {key: list(value) for key, value in self.seen.items()}, set(self.kinds)]
        states = [
            self.own.getstate(),
            self.generator.get_state().tolist(),
            random.getstate(),
            torch.get_rng_state().tolist(),
        ]
        return bits, flags, plain, states, self.helper.count, sorted(vars(self)), int(self.norm.num_batches_tracked)


@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_as_before_also_when_the_block_raises(raises: bool) -> None:
    model = Model()
    before, modes = model.state(), [module.training for module in model.modules()]

    try:
        with undone(model):
            model.disturb()
            if raises:
                raise KeyError
    except KeyError:
        assert raises

    assert model.state() == before
    assert [module.training for module in model.modules()] == modes


def test_a_gradient_that_was_there_comes_back_and_is_not_added_to() -> None:
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    gradient = model.weight.grad

    with undone(model):
        assert model.weight.grad is None
        model(torch.ones(1, 2)).sum().backward()

    assert model.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(1, 2))


def test_what_is_not_written_keeps_its_version() -> None:
    model = nn.Linear(2, 1)
    versions = [p._version for p in model.parameters()]

    with undone(model):
        model(torch.ones(1, 2))

    assert [p._version for p in model.parameters()] == versions


def test_one_entry_of_many_and_what_lies_in_it_are_put_back() -> None:
    model = nn.Linear(2, 1)
    rows, first, kept = [[1], [2]], [1], {"a": [1], "b": [2]}
    rows[0] = first
    model.rows, model.kept = rows, kept
    with undone(model):
        model.rows[0] = [9]
        model.rows[1].append(3)
        model.kept["b"] = [9]
    assert (model.rows is rows, rows) == (True, [[1], [2]])
    assert rows[0] is first
    assert kept == {"a": [1], "b": [2]}


def test_a_very_long_list_is_put_back_but_not_what_lies_in_it() -> None:
    model = nn.Linear(2, 1)
    model.rows = [[place] for place in range(3000)]
    with undone(model):
        model.rows[0].append(1)
        model.rows[1] = []
    assert model.rows[:2] == [[0, 1], [1]]
