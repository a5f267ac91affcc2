"""A forward to look at a model leaves no trace."""

from __future__ import annotations

import random
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.model.dry_run import copied_for, dry_run, evaluated, tensors_in
from lightning_freeze.model.index import ModelIndex


class Writes(nn.Module):
    """Writes buffers, draws random numbers and notes its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, inputs: Tensor, scale: float = 1.0) -> Tensor:
        self.calls += 1
        self.last = inputs.mean(0) * scale + torch.rand(3) + random.random()
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.norm(inputs)


@pytest.mark.parametrize("arguments", [torch.ones(4, 3), (torch.ones(4, 3), 2.0), {"inputs": torch.ones(4, 3)}])
def test_buffers_modes_and_random_state_are_as_before(arguments: object) -> None:
    model = Writes()
    model.norm.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    last, states = model.last, (torch.get_rng_state(), random.getstate())
    dry_run(model, arguments)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.last is last
    assert (model.training, model.norm.training) == (True, False)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_everything_is_put_back_when_the_forward_raises() -> None:
    model = Writes()
    with pytest.raises(RuntimeError, match="must match the size"), evaluated(model), torch.no_grad():
        model(torch.ones(4, 5))
    assert model.calls == 0
    assert model.training


def test_tensors_are_found_in_nested_containers_in_order() -> None:
    values = [torch.tensor(float(k)) for k in range(4)]
    tree = {"a": [values[0], {"b": values[1]}], "c": (values[2], "text"), "d": values[3]}
    assert [int(tensor) for tensor in tensors_in(tree)] == [0, 1, 2, 3]


def test_an_input_is_copied_to_the_dtype_of_the_model_and_integers_stay() -> None:
    pair = namedtuple("pair", ("x", "ids"))
    given = pair(torch.ones(2), torch.ones(2, dtype=torch.int64))
    copied = copied_for(ModelIndex(nn.Linear(2, 2).double()), [given, {"flag": True}])
    assert copied[0].x.dtype == torch.float64
    assert copied[0].ids.dtype == torch.int64
    assert copied[0].x.data_ptr() != given.x.data_ptr()
    assert copied[1] == {"flag": True}
