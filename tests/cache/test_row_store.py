"""Rows in memory: as many as the budget of all allows."""

from __future__ import annotations

import torch

from lightning_freeze.cache.row_store import Storage

COST = 3 * 4 + 40


def test_rows_come_back_in_the_order_asked_for() -> None:
    store = Storage(1 << 12).open((3,), torch.float32)
    assert store is not None
    rows = torch.randn(4, 3)
    slots = store.put([(k, k) for k in range(4)], rows, 4, 0, [0, 1, 2, 3])
    assert torch.equal(store.get(slots[::-1]), rows.flip(0))
    assert store.bytes == 48
    assert (store.news(), list(store.torn(slots)), store.pending) == ([], [], False)


def test_the_budget_is_that_of_all_stores() -> None:
    storage = Storage(5 * COST)
    one, other = storage.open((3,), torch.float32), storage.open((3,), torch.float32)
    assert one is not None
    assert other is not None
    assert len(one.put([(k, k) for k in range(3)], torch.ones(3, 3), 3, 0, [0, 1, 2])) == 3
    assert len(other.put([(k, k) for k in range(9)], torch.ones(9, 3), 9, 0, range(9))) == 2
    assert storage.open((3,), torch.float32) is None
    one.close()
    assert storage.open((3,), torch.float32) is not None


def test_rows_that_come_in_inference_mode_can_be_joined_outside() -> None:
    with torch.inference_mode():
        store = Storage(1 << 12).open((3,), torch.float32)
        assert store is not None
        store.put([(1, 1)], torch.ones(1, 3), 1, 0, [0])
    store.put([(2, 2)], torch.zeros(1, 3), 1, 0, [0])
    assert store.get([0, 1]).sum() == 3
