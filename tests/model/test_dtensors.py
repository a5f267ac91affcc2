"""Parameters in parts: a checkpoint holds the whole, each rank takes its part. Several ranks: test_fsdp_checkpoints."""

from __future__ import annotations

import pytest
import torch
from helpers import SHARDS_ON_CPU
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lightning_freeze.model.dtensors import cut_like, gathered, is_sharded, is_sharded_tensor, local_part, reshard


def test_plain_tensors_stay_as_they_are() -> None:
    tensor = torch.ones(3)
    assert gathered({"a": [tensor, 1]})["a"][0] is tensor
    assert cut_like(tensor, torch.zeros(3)) is tensor
    assert local_part(tensor) is tensor
    assert not is_sharded_tensor(tensor)
    assert not is_sharded(nn.Linear(2, 2))


@pytest.mark.usefixtures("gloo")
@pytest.mark.filterwarnings("ignore:DTensor random operators")  # torch 2.6
def test_a_whole_tensor_is_cut_as_its_parameter_and_gathered_again() -> None:
    mesh = init_device_mesh("cpu", (1,))
    parameter = distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)])
    whole = torch.arange(8.0).view(4, 2)
    part = cut_like(whole, parameter)
    assert isinstance(part, DTensor)
    assert part.placements == parameter.placements
    assert torch.equal(local_part(part), whole)
    assert torch.equal(gathered([part])[0], whole)
    other_shape = cut_like(torch.ones(3), parameter)
    assert isinstance(other_shape, DTensor)
    assert other_shape.placements == (Replicate(),)
    count = torch.tensor(5.0)
    assert cut_like(count, parameter) is count


@pytest.mark.usefixtures("gloo")
@pytest.mark.skipif(not SHARDS_ON_CPU, reason="this torch shards on a GPU only")
def test_a_sharded_module_is_known_and_resharded() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert is_sharded(model)
    with torch.no_grad():
        model(torch.zeros(1, 2))
    reshard([model])
    assert all(is_sharded_tensor(parameter) for parameter in model.parameters())
