"""Rows are served after they were found to be what is computed, and never after they were not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_freeze.cache.graph import Facts
from lightning_freeze.cache.row_store import Key, Storage
from lightning_freeze.cache.shelf import Shelf, put_rows, same_bits

KEYS: list[Key] = [(k, k) for k in range(8)]
ROWS = torch.randn(8, 16)


def shelf(verify: bool = True) -> tuple[Shelf, list[str]]:
    warned: list[str] = []
    store = Storage(1 << 16).open((16,), torch.float32)
    assert store is not None
    made = Shelf("stem", store, verify, warned.append)
    made.learn(made.look(8, KEYS), ROWS)
    return made, warned


def test_rows_are_served_after_a_comparison() -> None:
    made, _ = shelf()
    assert not made.look(8, KEYS).usable()
    made.learn(made.look(8, KEYS), ROWS)
    look = made.look(8, KEYS)
    assert look.usable()
    assert look.filling() == []
    assert torch.equal(made.gather(look), ROWS)
    assert not made.look(8, KEYS, mode=2).usable()  # under inference_mode it is another matter
    assert not made.look(8, KEYS[::-1]).usable()  # and in another order


def test_without_verify_at_once() -> None:
    assert shelf(verify=False)[0].look(8, KEYS).usable()


@pytest.mark.parametrize(("order", "how"), [(1, "a second time"), (-1, "in another batch")])
def test_a_difference_is_said_and_ends_it(order: int, how: str) -> None:
    made, warned = shelf()
    made.learn(made.look(8, KEYS[::order]), ROWS[::order] + 1 if order == 1 else ROWS.flip(0) + 1)
    assert f"'stem' gives a row other values when it is computed {how}" in warned[0]
    assert not made.look(8, KEYS).usable()


def test_missing_rows_are_filled_up_to_a_batch_of_the_same_bits() -> None:
    made, _ = shelf(verify=False)
    look = made.look(8, [*KEYS[:5], (90, 0), (91, 0), (92, 0)])
    assert look.filling() is None
    assert look.fewer() == 3
    made.tried(look, 3, ROWS[:3], ROWS[:3] + 1)
    assert look.fewer() == 4
    made.tried(look, 4, torch.ones(40, 16), torch.ones(40, 16))
    assert look.filling() == [5, 6, 7, 7]
    made.tried(look, 4, None, ROWS[:3])  # what is known stays


def test_rows_of_batches_of_another_size_serve_when_they_are_the_same() -> None:
    made, _ = shelf()
    made.learn(made.look(4, KEYS[:4]), ROWS[:4])
    assert made.look(4, KEYS[4:]).known == [0, 1, 2, 3]
    other, _ = shelf()
    other.learn(other.look(4, KEYS[:4]), ROWS[:4] + 1)
    assert other.look(4, KEYS[4:]).known == []


def test_an_epoch_without_a_find_is_told() -> None:
    made, _ = shelf()
    assert not made.epoch_end()
    made.look(8, [(100 + k, k) for k in range(8)])
    assert made.epoch_end()


@pytest.mark.parametrize("dim", [0, 1, None])
def test_rows_are_put_together_with_the_strides_they_had(dim: int | None) -> None:
    whole = torch.randn(4, 4, 2).transpose(0, 2)[:, :4]
    facts = Facts(tuple(whole.shape), tuple(whole.stride()), whole.dtype, whole.device, dim)
    rows = whole.unsqueeze(0) if dim is None else whole.movedim(dim, 0)
    made = put_rows(facts, list(range(len(rows))), rows.contiguous(), [], None)
    assert torch.equal(made, whole)
    assert made.stride() == whole.stride()
    if dim is not None and len(rows) > 1:
        made = put_rows(facts, [0], rows[:1], list(range(1, len(rows))), rows[1:])
        assert torch.equal(made, whole)


def test_bits_are_compared_not_numbers() -> None:
    nan = torch.tensor([float("nan")])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.zeros(1), -torch.zeros(1))


def test_a_failing_disk_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made, warned = shelf()

    def put(*_: object) -> list[int]:
        raise OSError("no space left")

    monkeypatch.setattr(made.store, "put", put)
    rows: Tensor = torch.ones(1, 16)
    made.learn(made.look(1, [(50, 50)]), rows)
    assert "rows of 'stem' cannot be written: no space left" in warned[0]
