"""A parameter in no optimizer joins the group of its siblings, or an error says why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lightning_freeze import OptimizerError
from lightning_freeze.optim.joining import home_of, join_group

HOMES = {"a.weight": (0, 0), "a.bias": (0, 1), "b.0.weight": (0, 0), "b.0.bias": (0, 1), "c.weight": (1, 0)}


NDIMS = dict.fromkeys(HOMES, 2) | {"a.bias": 1, "b.0.bias": 1}


@pytest.mark.parametrize(
    ("name", "dims", "home"),
    [("b.0.scale", 1, (0, 1)), ("b.1.weight", 2, (0, 0)), ("c.bias", 1, (1, 0)), ("a.sub.extra", 3, (0, 0))],
)
def test_a_home_is_where_the_nearest_siblings_of_its_kind_are(name: str, dims: int, home: tuple[int, int]) -> None:
    assert home_of(name, HOMES, NDIMS | {name: dims}) == home


@pytest.mark.parametrize(("name", "homes"), [("d.weight", HOMES), ("d.weight", {})])
def test_no_home_is_guessed(name: str, homes: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(OptimizerError, match=r"'d\.weight' is to be trained but is in no optimizer"):
        home_of(name, homes, NDIMS | {name: 2})


def test_joining_keeps_the_names_of_named_parameters_in_step() -> None:
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SGD([("one", one)], lr=0.1)
    join_group(optimizer, "other", other, 0)
    assert optimizer.param_groups[0]["param_names"] == ["one", "other"]
