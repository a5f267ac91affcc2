"""What the preview says one process holds is what one process of FSDP2 holds."""

from __future__ import annotations

import pytest
import torch
from fake_ranks import fake_ranks
from helpers import SHARDS_ON_CPU
from torch import nn

from lightning_freeze.preview.memory import share
from lightning_freeze.preview.simulation import state_per_element


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(33, 65), nn.LayerNorm(65), nn.Linear(65, 65), nn.Linear(65, 7))


@pytest.mark.skipif(not SHARDS_ON_CPU, reason="FSDP2 on the CPU needs torch 2.7")
@pytest.mark.parametrize("world", [1, 2, 8])
def test_parts_of_every_parameter_and_its_state_are_as_large_as_they_are_said_to_be(world: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    planned = share(dict(network().named_parameters()), ["3.weight", "3.bias"], world, sharded=True, state_each=2.0)
    with fake_ranks(world):
        model = fully_shard(network(), mesh=init_device_mesh("cpu", (world,)))
        head = list(model[3].parameters())
        optimizer = torch.optim.AdamW(head)
        for parameter in head:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    assert planned.weights == sum(parameter.to_local().nbytes for parameter in model.parameters())
    assert planned.gradients == sum(parameter.grad.to_local().nbytes for parameter in head)
    assert planned.state == sum(moment.to_local().nbytes for moment in moments)
    assert planned.state / planned.gradients == state_per_element(optimizer, torch.float32) / 4


def test_under_ddp_every_process_holds_everything() -> None:
    parameters = dict(network().named_parameters())
    one, many = (share(parameters, parameters, world, sharded=False, state_each=2.0) for world in (1, 64))
    assert one == many
    assert one.weights == sum(parameter.nbytes for parameter in parameters.values())
    assert one.total == 4 * one.weights


def test_where_a_part_of_the_model_is_sharded_only_that_part_is_cut() -> None:
    parameters = dict(network().named_parameters())
    whole = share(parameters, [], 2, sharded=True, state_each=0.0, bytes_each=2)
    assert whole.weights == 2 * sum(-(-p.shape[0] // 2) * p[0].numel() for p in parameters.values())
