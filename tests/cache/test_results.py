"""What is known of results: shape, strides, where the rows are, and what they share memory with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_freeze.cache.graph import Kind, Leaf, Node, Op
from lightning_freeze.cache.results import facts_of


def op(inputs: Any, rows: int = 4) -> Op:
    leaf = Leaf(torch.ones(rows, 2), rows)
    return Op(Kind((), "stem", 0), None, None, list(inputs), (leaf,), rows, (), None)


def test_rows_strides_and_offset_are_noted() -> None:
    result = torch.randn(4, 3, 2).transpose(1, 2)
    (facts,) = facts_of(op([]), [], [result]) or ()
    assert (facts.shape, facts.stride, facts.rows_dim) == ((4, 2, 3), (6, 1, 2), 0)
    assert (facts.view, facts.same) == (None, None)


def test_a_view_of_a_result_is_told_and_one_of_anything_else_is_refused() -> None:
    given = torch.randn(4, 6)
    node = Node(op([]), 0)
    (facts,) = facts_of(op([node]), [given], [given[:, 2:]]) or ()
    assert (facts.view, facts.same, facts.offset) == (0, None, 2)
    (facts,) = facts_of(op([node]), [given], [given]) or ()
    assert (facts.view, facts.same) == (0, 0)
    assert facts_of(op([given]), [given], [given[:, 2:]]) is None


@pytest.mark.parametrize(
    "results",
    [
        [torch.ones(4, 1).expand(4, 3)],
        [torch.ones(4, 3, requires_grad=True)],
        [torch.ones(4, 3).to_sparse()],
        [torch.nn.Parameter(torch.ones(4, 3), requires_grad=False)],
        [torch.ones(4, 3)] * 2,
    ],
    ids=["expanded", "with gradient", "sparse", "parameter", "one twice"],
)
def test_what_cannot_be_kept_has_no_facts(results: list[Tensor]) -> None:
    assert facts_of(op([]), [], results) is None
