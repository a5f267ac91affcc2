"""Leaves know their rows and what they were; results know whether somebody wrote into them."""

from __future__ import annotations

import pytest
import torch

from lightning_freeze.cache.graph import Leaf
from lightning_freeze.errors import FreezeError


@pytest.mark.parametrize(
    ("shape", "batch", "dim", "rows"),
    [((4, 2), 4, 0, 4), ((3, 4), 4, 1, 4), ((8, 2), 4, 0, 8), ((3, 5), 4, None, 1), ((4,), None, None, 1)],
)
def test_rows_are_found_by_the_size_of_the_batch(shape: tuple[int, ...], batch: int, dim: int, rows: int) -> None:
    leaf = Leaf(torch.randn(shape), batch)
    assert (leaf.rows_dim, leaf.rows) == (dim, rows)
    assert len(leaf.keys) == rows


def test_some_rows_keep_the_order_in_memory() -> None:
    leaf = Leaf(torch.randn(4, 3, 5).transpose(1, 2), 4)
    some = leaf.some([2, 0])
    assert torch.equal(some, leaf.tensor[[2, 0]])
    assert not some.is_contiguous()


def test_a_small_leaf_that_is_secured_may_be_written_a_large_one_may_not() -> None:
    for size, refused in ((8, False), (1 << 17, True)):
        leaf = Leaf(torch.zeros(2, size), 2)
        leaf.secure()
        leaf.tensor.add_(1)
        if refused:
            with pytest.raises(FreezeError, match="Write into a clone of it"):
                leaf.value()
        else:
            assert not leaf.value().any()


def test_leaves_of_other_dtypes_and_strides_are_of_other_kinds() -> None:
    tensors = [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64), torch.ones(3, 2).t(), torch.ones(2, 4)]
    assert len({Leaf(one, 2).describe(0) for one in tensors}) == 4
    assert Leaf(torch.ones(2, 3), 2).describe(0) == Leaf(torch.ones(5, 3), 5).describe(0)
