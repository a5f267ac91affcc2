"""Values come from rows where they are known, and from work where they are not, whoever asks for them when."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.cache.memo import FrozenMemo
from lightning_freeze.cache.row_store import Storage
from lightning_freeze.errors import FreezeError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mid = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 2)


def run(step: Callable[[Net, Tensor, int], Tensor], turns: int = 8, rows: int = 16) -> int:
    """Each step gives what it gives without the memo; rows that were served."""
    model = Net()
    cache = FrozenMemo(model, Storage(1 << 18), say=list[str]().append)
    data = torch.randn(rows, 8, generator=torch.Generator().manual_seed(3))
    for turn in range(turns):
        batch = data[torch.randperm(rows, generator=torch.Generator().manual_seed(turn))[:8]]
        assert torch.equal(cache.run(step, model, batch.clone(), turn), step(model, batch.clone(), turn)), turn
    return cache.hits


def test_a_result_that_is_needed_now_and_then_is_there() -> None:
    def step(net: Net, batch: Tensor, turn: int) -> Tensor:
        first = net.stem(batch)
        out = net.head(net.mid(first)).sum()
        return out + first.sum() if turn in (5, 7) else out

    assert run(step) > 0


@pytest.mark.parametrize("view_first", [True, False])
def test_views_and_what_they_are_of_stay_one_memory(view_first: bool) -> None:
    def step(net: Net, batch: Tensor, turn: int) -> Tensor:
        first = net.stem(batch)
        view = first[:, :4]
        if view_first:
            view.mul_(2)
        else:
            first.mul_(2)
        return (net.head(first) * view.sum(1, keepdim=True)).sum()

    run(step)


def test_only_missing_rows_are_computed_where_a_smaller_batch_gives_the_same_bits() -> None:
    def step(net: Net, batch: Tensor, turn: int) -> Tensor:
        return net.head(net.mid(net.stem(batch))).sum()

    assert run(step, turns=12, rows=24) > 0


def test_weights_that_are_written_before_a_late_look_are_refused() -> None:
    model = Net()
    cache, batch = FrozenMemo(model, Storage(1 << 18), say=list[str]().append), torch.randn(8, 8)
    odd = False

    def step(inputs: Tensor) -> Tensor:
        first = model.stem(inputs)
        out = model.head(model.mid(first)).sum()
        if odd:
            with torch.no_grad():
                model.stem.weight.mul_(2)
            out = out + first.sum()
        return out

    for _ in range(4):
        cache.run(step, batch)
    odd = True
    with pytest.raises(FreezeError, match="'stem' was changed within a step, after it was called"):
        cache.run(step, batch)
