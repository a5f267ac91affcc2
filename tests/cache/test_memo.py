"""A memo runs steps: as often as without it, with fewer rows computed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.cache.memo import FrozenMemo, batch_rows
from lightning_freeze.cache.row_store import Storage


def memo(model: nn.Module, said: list[str] | None = None) -> FrozenMemo:
    lines = [] if said is None else said
    return FrozenMemo(model, Storage(1 << 20), say=lines.append, warn=lines.append)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8).requires_grad_(False).eval(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        ((torch.ones(3, 4), torch.ones(3)), 3),
        ((torch.ones(5, 3, 4), torch.ones(3)), 3),
        ({"a": torch.ones(6, 2)}, 6),
        ([], None),
        ((torch.ones(()),), None),
    ],
)
def test_a_batch_has_as_many_rows_as_labels(batch: object, rows: int | None) -> None:
    assert batch_rows(batch) == rows


def test_it_begins_anew_when_what_trains_changes_and_says_what_it_saved() -> None:
    model, said = net(), list[str]()
    cache, batch = memo(model, said), torch.randn(8, 8)

    def step(inputs: Tensor) -> Tensor:
        return model(inputs).sum()

    for _ in range(4):
        cache.run(step, batch)
    assert cache.hits == 16
    model[0].requires_grad_(True)
    assert torch.equal(cache.run(step, batch), step(batch))
    assert cache.hits == 0
    assert said == [
        "FeatureCache: what comes out of '0' is kept",
        "FeatureCache, up to '0': 16 of 32 rows served, 0.0 MiB kept",
    ]


def test_an_error_leaves_nothing_behind() -> None:
    model = net()
    cache = memo(model)

    def step(inputs: Tensor) -> None:
        model(inputs)
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        cache.run(step, torch.randn(8, 8))
    assert "forward" not in vars(model[0])


def test_a_copy_leaves_it_behind() -> None:
    cache = memo(net())
    assert copy.deepcopy(cache) is None
    assert pickle.loads(pickle.dumps(cache)) is None


def test_new_rows_in_each_step_turn_it_off_after_an_epoch_that_began_with_rows() -> None:
    model, said = net(), list[str]()
    cache = memo(model, said)
    for _ in range(3):
        for _ in range(3):
            cache.run(lambda inputs: model(inputs).sum(), torch.randn(8, 8))
        cache.epoch_end()
    assert "no row came a second time" in cache.off
    assert "FeatureCache is off" in said[-1]


def test_a_closed_memo_runs_steps_as_they_are() -> None:
    cache = memo(net())
    cache.close()
    assert cache.run(lambda one: one + 1, 1) == 2
