"""What the preview says one process holds is what one process of FSDP2 holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_ranks import fake_ranks
from helpers import SHARDS_ON_CPU
from previewing import UNFREEZE, code_in, config
from torch import nn

from lightning_freeze.preview.memory import share, state_per_element
from lightning_freeze.preview.simulation import preview
from lightning_freeze.preview.text import text


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


@pytest.mark.parametrize("meta", [False, True])
def test_activations_grow_as_layers_are_unfrozen_and_are_the_same_for_any_number_of_processes(
    tmp_path: Path, meta: bool
) -> None:
    found = preview([config(code_in(tmp_path), UNFREEZE, data="previewed.Fed")], worlds=[1, 4], meta=meta)
    by_count = found.shares[1, False]
    sizes = [by_count[count].activations for count in sorted(by_count)]
    assert len(sizes) == 3
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    for shares in found.shares.values():
        assert [shares[count].activations for count in sorted(shares)] == sizes
    one = by_count[max(by_count)]
    assert one.total == one.weights + one.gradients + one.state + sizes[2]
    assert not [remark for remark in found.remarks if "Activations" in remark]
    assert "  activations " in text(found)
    assert "checkpointed" not in text(found)


def test_without_a_batch_activations_are_unknown_and_a_remark_says_why(tmp_path: Path) -> None:
    found = preview([config(code_in(tmp_path), UNFREEZE)], worlds=[1])
    assert {one.activations for one in found.shares[1, False].values()} == {None}
    assert [remark for remark in found.remarks if "gives no batch (AssertionError: Caught AssertionError" in remark]
    assert "  activations " not in text(found)
