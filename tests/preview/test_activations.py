"""Activations of a step on meta tensors are as large as what a real step keeps."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fake_ranks import fake_ranks
from helpers import SHARDS_ON_CPU
from torch import Tensor, nn

from lightning_freeze.preview.activations import activations, checkpointed


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.gradient_checkpointing = False

    def run(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.attention(x).chunk(3, dim=-1))
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.mlp(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.gradient_checkpointing:
            return self._gradient_checkpointing_func(self.run, x)  # type: ignore[no-any-return]
        return self.run(x)


class Model(pl.LightningModule):
    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(*[Block(32) for _ in range(depth)])
        self.head = nn.Linear(32, 4)
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls += 1
        x, mask, y = batch
        if not mask.all():
            raise AssertionError("a mask on the meta device selects everything")
        out = self.head(self.body(x)).mean(1)
        self.log("loss", out.sum())
        return nn.functional.cross_entropy(out, y)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(8, 64, 32), torch.ones(8, 64, dtype=torch.bool), torch.randint(0, 4, (8,))


def kept(model: Model) -> int:
    """Bytes that autograd keeps of a real step, without parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.training_step(batch(), 0)
    assert loss.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("frozen", [0, 3])
def test_they_are_as_large_as_what_a_real_step_keeps(frozen: int) -> None:
    model = Model()
    model.body[:frozen].requires_grad_(False)
    assert activations(model, batch()) == pytest.approx(kept(model), rel=0.15)


def test_frozen_layers_below_what_trains_keep_nothing() -> None:
    model = Model()
    everything = activations(model, batch())
    model.body.requires_grad_(False)
    assert activations(model, batch()) < 0.25 * everything


def test_with_checkpointing_they_are_those_of_one_block_and_the_inputs_of_all() -> None:
    model = Model()
    plain = activations(model, batch())
    with checkpointed(model) as possible:
        assert possible
        assert 0.15 * plain < activations(model, batch()) < 0.4 * plain
    assert activations(model, batch()) == plain
    with checkpointed(nn.Linear(2, 2)) as possible:
        assert not possible


def test_the_module_and_its_random_state_are_as_before() -> None:
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    activations(model, batch())
    assert model.calls == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(random, torch.random.get_rng_state())  # by `batch` alone
    torch.random.set_rng_state(random)
    batch()
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(random)
    activations(model, batch())
    assert torch.equal(after, torch.random.get_rng_state())


@pytest.mark.skipif(not SHARDS_ON_CPU, reason="FSDP2 on the CPU needs torch 2.7")
def test_a_sharded_module_has_those_of_the_whole_one() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    expected = activations(Model(), batch())
    with fake_ranks(2):
        model, mesh = Model(), init_device_mesh("cpu", (2,))
        for block in model.body:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        hooks = [len(module._forward_pre_hooks) for module in model.modules()]
        assert activations(model, batch()) == expected
        assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
