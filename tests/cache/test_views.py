"""A version of a sample hangs on its seed alone; nothing else sees that it was drawn."""

from __future__ import annotations

import pickle
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler, Subset

from lightning_freeze.cache.views import Drawn, ViewedDataset, kept, seed_all, seed_of, viewed, why_not
from lightning_freeze.errors import PlanError


class Noise(Dataset[Any]):
    """Draws from all three generators."""

    scale = 1.0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, float]:
        return int(index), self.scale * (random.random() + 10 * np.random.rand() + 100 * torch.rand(1).item())


class Bulk(Noise):
    """Asked for several samples at once."""

    def __getitems__(self, indices: list[int]) -> list[tuple[int, float]]:
        return [self[index] for index in indices]


def state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def broken() -> None:
    seed_all(1)
    random.random(), np.random.rand(), torch.rand(1), 1 / 0


def by_version(version: int = 0) -> Callable[[], Callable[[Any], int]]:
    return lambda: lambda index: seed_of(version, index)


def drawn(loader: DataLoader[Any], version: int = 0) -> dict[int, float]:
    assert not why_not(loader)
    rows: list[tuple[int, float]] = []
    for batch in viewed(loader, by_version(version))[0]:
        rows += zip(*(torch.as_tensor(part, dtype=torch.float64).reshape(-1).tolist() for part in batch), strict=True)
    return dict(rows)


@pytest.mark.parametrize(
    "data",
    [
        Noise(),
        Bulk(),
        Subset(Noise(), range(8)),
        ConcatDataset([Subset(Noise(), range(4)), Subset(Noise(), range(4, 8))]),
    ],
)
def test_a_version_is_the_same_in_any_order_and_batch(data: Any) -> None:
    once = drawn(DataLoader(data, batch_size=3))
    assert once == drawn(DataLoader(data, batch_size=2, shuffle=True))
    assert once == drawn(DataLoader(data, batch_size=None, sampler=RandomSampler(data)))
    assert once == drawn(DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, False)))
    other = drawn(DataLoader(data), 1)
    assert len(once) == len(set(once.values())) == 8
    assert not set(once.values()) & set(other.values())


def test_workers_draw_what_this_process_draws_in_each_pass() -> None:
    loader = DataLoader(Noise(), batch_size=2, num_workers=2, persistent_workers=True)
    version = iter((0, 1, 0))
    twin, _ = viewed(loader, lambda: by_version(next(version))())
    passes = [torch.cat([numbers for _, numbers in twin]) for _ in range(3)]
    assert passes[0].tolist() == [*drawn(DataLoader(Noise())).values()]
    assert torch.equal(passes[0], passes[2])
    assert not torch.equal(passes[0], passes[1])
    assert loader._iterator is None
    assert type(loader.dataset) is Noise


def test_random_state_is_as_it_was_after_a_sample_and_after_an_error() -> None:
    before, data = state(), ViewedDataset(Noise())
    assert data[Drawn(0, 1)] == data.__getitems__([Drawn(0, 1)])[0]
    with pytest.raises(ZeroDivisionError), kept():
        broken()
    assert state() == before


def test_a_viewed_dataset_is_the_dataset_to_whoever_asks() -> None:
    data = Noise()
    seen: Any = ViewedDataset(data)
    assert isinstance(seen, Noise)
    assert len(seen) == 8
    seen.scale = 0.0
    assert data.scale == 0.0
    assert seen[2] == (2, 0.0)
    del seen.scale
    with pytest.raises(AttributeError, match="scales"):
        _ = seen.scales
    copied = pickle.loads(pickle.dumps(seen))
    assert type(copied) is ViewedDataset
    assert copied[Drawn(3, 5)] == seen[Drawn(3, 5)]


def test_seeds_tell_versions_samples_and_loaders_apart() -> None:
    assert len({seed_of(*places) for places in np.ndindex(4, 4, 4)}) == 64
    assert seed_of(0, "a.png") != seed_of(0, "b.png") != seed_of(0, ("a.png", 1))
    assert seed_of(3) == seed_of(np.int64(3)) == seed_of(torch.tensor(3)) == 726037514067229890


@pytest.mark.parametrize("index", [[1, 2], {"index": 1}, object()])
def test_an_index_that_is_no_single_sample_is_refused(index: Any) -> None:
    with pytest.raises(PlanError, match=f"indices of type {type(index).__name__}"):
        seed_of(0, index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(4))


@pytest.mark.parametrize(
    ("loader", "why"),
    [
        ([torch.zeros(2)], "is a list and no torch DataLoader"),
        (DataLoader(Stream()), r"iterable dataset \(Stream\)"),
        (DataLoader(Noise(), batch_size=None, sampler=BatchSampler(range(8), 2, False)), "whole batch at once"),
    ],
)
def test_loaders_without_single_samples_are_refused(loader: Any, why: str) -> None:
    assert re.search(why, why_not(loader))
