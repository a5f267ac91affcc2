"""Norms per group, unscaled, on the device."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD

from lightning_freeze.optim.norms import gradient_scale, local, shares, square_norms


def test_the_square_of_each_groups_gradient() -> None:
    first, second, bare = (nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16, None))
    optimizer = SGD([{"params": [first, second]}, {"params": [bare]}, {"params": []}], lr=0.1)
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert square_norms(optimizer).tolist() == [30.0, 0.0, 0.0]
    optimizer.grad_scale = torch.tensor(2.0)  # type: ignore[attr-defined]
    assert square_norms(optimizer).tolist() == [7.5, 0.0, 0.0]
    assert gradient_scale(optimizer) == 2.0


def test_sparse_gradients_count_their_values_once() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    assert embedding.weight.grad is not None
    assert local([embedding.weight.grad])[0].tolist() == [[2.0, 2.0], [1.0, 1.0]]


def test_without_sharding_each_tensor_counts_once() -> None:
    assert shares([torch.tensor([1.0, -2.0]), torch.tensor([3.0])]) == [1.0, 1.0]
