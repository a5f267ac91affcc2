"""Keys are equal for equal rows only, whatever batch they are in."""

from __future__ import annotations

import pytest
import torch

from lightning_freeze.cache.row_keys import row_keys


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_a_row_has_its_key_in_every_batch_and_layout(dtype: torch.dtype) -> None:
    batch = (torch.randn(6, 3, 5) * 9).to(dtype)
    keys = row_keys([batch], 6)
    order = torch.tensor([4, 0, 3])
    assert torch.equal(row_keys([batch[order]], 3), keys[order])
    turned = batch.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(row_keys([turned], 6), keys)


def test_one_bit_makes_another_key() -> None:
    batch = torch.zeros(1, 4, dtype=torch.int64)
    seen = {tuple(row_keys([batch], 1)[0].tolist())}
    for word in range(4):
        for bit in range(64):
            other = batch.clone()
            other[0, word] = -(1 << 63) if bit == 63 else 1 << bit
            seen.add(tuple(row_keys([other], 1)[0].tolist()))
    assert len(seen) == 257


def test_signs_alone_make_other_keys() -> None:
    """Two numbers share a word: their signs together were once lost on a quarter of the words."""
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * 12)
    keys = {tuple(key) for key in row_keys([signs], len(signs)).tolist()}
    assert len(keys) == len(signs)


def test_zeros_behind_a_row_and_signs_count() -> None:
    row = torch.ones(1, 7)
    assert not torch.equal(row_keys([row], 1), row_keys([torch.nn.functional.pad(row, (0, 1))], 1))
    assert not torch.equal(row_keys([torch.zeros(1, 2)], 1), row_keys([-torch.zeros(1, 2)], 1))


def test_what_has_no_rows_counts_for_each() -> None:
    batch = torch.randn(3, 2)
    one, other = row_keys([batch, torch.ones(5)], 3), row_keys([batch, torch.zeros(5)], 3)
    assert (one != other).any(1).all()
