"""The graph of a loss as a flow: a parameter is used where it meets data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_freeze.stages.gradients import flow_to

first, second = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(4, 4))


def name_of(tensor: Tensor) -> str | None:
    return {id(first): "first", id(second): "second"}.get(id(tensor))


def uses(*losses: Tensor) -> list[tuple[str, ...]]:
    """The parameters at each node that uses some, the input first."""
    return [names for _, names in sorted(flow_to(losses, name_of, {}).uses.items())]


def test_a_transposed_cast_or_normed_weight_is_used_where_it_meets_data() -> None:
    hidden = torch.rand(2, 4) @ (first / first.norm()).t().double().float()

    assert uses((hidden @ second.t()).sum()) == [("first",), ("second",)]


def test_a_weight_that_meets_no_data_is_used_by_the_loss() -> None:
    assert uses(first.square().sum()) == [("first",)]


def test_what_is_detached_is_not_used() -> None:
    assert uses(((torch.rand(2, 4) @ first).detach() @ second).sum()) == [("second",)]
    assert uses(torch.rand(2).sum()) == []


def test_several_losses_share_a_graph() -> None:
    hidden = torch.rand(2, 4) @ first

    assert uses((hidden @ second).sum(), hidden.sum()) == [("first",), ("second",)]
