"""A rule says where rows are after a function: what it says holds when rows are exchanged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_freeze.cache.functions import IN_PLACE, RULES, Given, is_in_place

ROWS = 5
ones = functools.partial(torch.ones, dtype=torch.float64)
CASES: list[tuple[Any, Callable[[Tensor], tuple[Any, ...]], int | None]] = [
    (torch.add, lambda x: (x, 1), 0),
    (torch.mul, lambda x: (x, ones(4)), 0),
    (torch.mul, lambda x: (x, ones(ROWS, 3, 4)), None),
    (Tensor.mean, lambda x: (x, 1), 0),
    (Tensor.mean, lambda x: (x, 0), None),
    (torch.sum, lambda x: (x,), None),
    (torch.softmax, lambda x: (x, -1), 0),
    (torch.softmax, lambda x: (x, 0), None),
    (Tensor.transpose, lambda x: (x, 0, 1), 1),
    (Tensor.permute, lambda x: (x, 2, 0, 1), 1),
    (Tensor.unsqueeze, lambda x: (x, 0), 1),
    (Tensor.unsqueeze, lambda x: (x, -1), 0),
    (Tensor.flatten, lambda x: (x, 1), 0),
    (Tensor.flatten, lambda x: (x,), None),
    (Tensor.view, lambda x: (x, ROWS, 12), 0),
    (Tensor.view, lambda x: (x, -1, 12), 0),
    (Tensor.view, lambda x: (x, 3, ROWS, 4), None),
    (Tensor.__getitem__, lambda x: (x, (slice(None), 0)), 0),
    (Tensor.__getitem__, lambda x: (x, (..., 0)), 0),
    (Tensor.__getitem__, lambda x: (x, 0), None),
    (Tensor.__getitem__, lambda x: (x, (None, slice(None), slice(1, 2))), 1),
    (torch.cat, lambda x: ([x, x * 2], 1), 0),
    (torch.cat, lambda x: ([x, x], 0), None),
    (functional.linear, lambda x: (x, ones(2, 4)), 0),
    (functional.layer_norm, lambda x: (x, (4,)), 0),
    (functional.layer_norm, lambda x: (x, (ROWS, 3, 4)), None),
    (torch.matmul, lambda x: (x, ones(4, 2)), 0),
    (torch.bmm, lambda x: (x, x.transpose(1, 2)), 0),
    (functional.conv1d, lambda x: (x, ones(2, 3, 1)), 0),
    (functional.dropout, lambda x: (x, 0.5, True), None),
    (functional.dropout, lambda x: (x, 0.5, False), 0),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_rows_are_where_the_rule_says(case: int) -> None:
    func, arguments, expected = CASES[case]
    batch = torch.randn(ROWS, 3, 4, dtype=torch.float64)
    args = arguments(batch)
    rows = {id(one): 0 for one in (*args, *(args[0] if isinstance(args[0], list) else ())) if _has_rows(one, batch)}
    dim = RULES[func](Given(rows, ROWS), args, {})
    assert dim == expected
    if dim is not None:
        order = torch.tensor([3, 1, 4, 0, 2])
        torch.testing.assert_close(func(*arguments(batch[order])), func(*args).index_select(dim, order))


def _has_rows(one: Any, batch: Tensor) -> bool:
    return isinstance(one, Tensor) and one.dim() == 3 and not torch.equal(one, torch.ones_like(one))


def test_functions_that_write_into_their_first_argument_are_known() -> None:
    assert all(func.__name__.endswith("_") for func in IN_PLACE)
    assert RULES.keys() >= IN_PLACE
    assert is_in_place(functional.relu, {"inplace": True})
    assert not is_in_place(functional.relu, {})
