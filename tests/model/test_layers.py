"""What kind of layer a module is, whichever library it comes from."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from lightning_freeze import select
from lightning_freeze.model.layers import has_statistics, is_embedding, normalizes


class Vector(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(*(shape or (4,))))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.gain


class Rescale(Vector):
    """An RMSNorm by another name."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self._spread(inputs) * self.gain

    def _spread(self, inputs: Tensor) -> Tensor:
        return inputs * torch.rsqrt(inputs.pow(2).mean(-1, keepdim=True) + 1e-6)


class PerHeadNorm(Vector):
    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.normalize(inputs, dim=-1) * self.gain


class NormLinear(Vector):
    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.normalize(inputs, dim=-1) @ self.gain


class LogNormalHead(Vector):
    pass


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fn, self.scale = nn.LayerNorm(4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.scale * self.fn(self.norm(inputs))


class MovingNorm(nn.Module):
    """BatchNorm of another library: nothing of torch's in its bases."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))
        self.register_buffer("moving_var", torch.ones(4))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.moving_var.lerp_(inputs.var(0), 0.1)
        return inputs * self.gamma / self.moving_var.sqrt()


NORMS = [
    nn.BatchNorm2d(4),
    nn.SyncBatchNorm(4),
    nn.InstanceNorm1d(4),
    nn.InstanceNorm1d(4, track_running_stats=True),
    nn.LayerNorm(4),
    nn.GroupNorm(2, 4),
    LlamaRMSNorm(4),
    T5LayerNorm(4),
    ConvNextV2GRN(4),
    FrozenBatchNorm2d(4),
    torchvision.models.convnext.LayerNorm2d(4),
    Rescale(),
    PerHeadNorm(2, 1, 4),
    MovingNorm(),
]
OTHERS = [
    nn.Linear(4, 4),
    nn.Conv2d(4, 4, 1),
    nn.PReLU(4),
    nn.Embedding(4, 4),
    nn.Sequential(nn.LayerNorm(4)),
    Vector(),
    NormLinear(4, 4),
    LogNormalHead(),
    PreNorm(),
    torchvision.ops.Conv2dNormActivation(4, 4),
]


@pytest.mark.parametrize("layer", NORMS, ids=lambda layer: type(layer).__name__)
def test_a_normalisation_layer_is_one_by_what_it_is(layer: nn.Module) -> None:
    assert normalizes(layer)


@pytest.mark.parametrize("layer", OTHERS, ids=lambda layer: type(layer).__name__)
def test_what_holds_or_resembles_one_is_none(layer: nn.Module) -> None:
    assert not normalizes(layer)


@pytest.mark.skipif(not hasattr(nn, "RMSNorm"), reason="since torch 2.4")
def test_torch_has_a_norm_without_a_mean() -> None:
    assert normalizes(nn.RMSNorm(4))


def test_statistics_are_those_that_training_updates() -> None:
    with_them = [layer for layer in NORMS if has_statistics(layer)]

    assert [type(layer).__name__ for layer in with_them] == [
        "BatchNorm2d",
        "SyncBatchNorm",
        "InstanceNorm1d",
        "MovingNorm",
    ]


def test_embeddings_are_tables_and_vectors_called_so() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
            self.words = nn.EmbeddingBag(3, 2)
            self.embeddings = nn.Linear(2, 2)

    assert is_embedding(nn.Embedding(2, 2))
    assert select(Patches(), "kind:embedding") == ["pos_embed", "words.weight"]


def test_biases_go_by_the_name_of_the_parameter() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
            self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
            self.rnn = nn.LSTM(4, 4)

    assert select(Parts(), "kind:bias") == [
        "attention.in_proj_bias",
        "attention.bias_k",
        "attention.bias_v",
        "attention.out_proj.bias",
        "rnn.bias_ih_l0",
        "rnn.bias_hh_l0",
    ]


def test_a_lazy_layer_has_kinds_before_it_has_shapes() -> None:
    assert select(nn.Sequential(nn.LazyLinear(2)), "kind:bias") == ["0.bias"]
