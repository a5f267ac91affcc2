"""Batches of an epoch as the Trainer would count them, without one being read."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lightning_freeze import FreezeError, PlanError
from lightning_freeze.preview.epoch_length import batches_of, steps_per_window


class Rows(torch.utils.data.Dataset[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        raise AssertionError("a row was read")


class Stream(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Any:
        raise AssertionError("a row was read")


class Source:
    """What has dataloaders."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def train_dataloader(self) -> Any:
        if isinstance(self.loader, Exception):
            raise self.loader
        return self.loader


def trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **options)


def batches(loader: Any, processes: int = 1, given: int | None = None, **options: Any) -> int:
    return batches_of(trainer(**options), Source(loader), processes, given)


def loader(count: int = 40, size: int = 8, **options: Any) -> DataLoader[int]:
    return DataLoader(Rows(count), batch_size=size, **options)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 5),
        ({"limit_train_batches": 3}, 3),
        ({"limit_train_batches": 99}, 5),
        ({"limit_train_batches": 0.5}, 2),
        ({"overfit_batches": 2}, 2),
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 4}, 4),
    ],
)
def test_limits_of_the_trainer_count(options: Any, count: int) -> None:
    assert batches(loader(), **options) == count


@pytest.mark.parametrize(
    ("made", "processes", "count"),
    [
        (loader(41), 1, 6),
        (loader(41), 2, 3),  # 21 rows each
        (loader(41, drop_last=True), 2, 2),
        (loader(41, drop_last=True), 1, 5),
        (loader(40), 4, 2),
        (loader(41, sampler=DistributedSampler(Rows(41), 2, 0)), 2, 3),  # is one process's share already
        (range(5), 2, 3),
    ],
)
def test_batches_are_shared_out_among_processes(made: Any, processes: int, count: int) -> None:
    assert batches(made, processes) == count


def test_a_trainer_that_shares_nothing_out_gives_each_process_everything() -> None:
    assert batches(loader(), 2, use_distributed_sampler=False) == 5


@pytest.mark.parametrize(
    ("made", "count"),
    [
        ([loader(16), loader(40)], 5),
        ({"a": loader(16), "b": (loader(24), loader(8))}, 3),
        (CombinedLoader([loader(16), loader(40)], "min_size"), 2),
        (CombinedLoader([loader(16), loader(40)], "max_size"), 5),
        (CombinedLoader({"a": loader(16), "b": loader(40)}, "sequential"), 7),
    ],
)
def test_of_several_loaders_the_mode_decides(made: Any, count: int) -> None:
    assert batches(made) == count


@pytest.mark.parametrize("made", [DataLoader(Stream()), [loader(), DataLoader(Stream())]])
def test_what_has_no_length_needs_one(made: Any) -> None:
    with pytest.raises(PlanError, match=r"has no length.*\n.*--steps-per-epoch 100"):
        batches(made)
    assert batches(made, given=7) == 7
    assert batches(made, limit_train_batches=3) == 3


def test_a_loader_that_cannot_be_made_needs_a_length() -> None:
    with pytest.raises(PlanError, match=r"cannot be made: OSError: no such file\n.*--steps-per-epoch 100") as caught:
        batches(OSError("no such file"))
    assert isinstance(caught.value.__cause__, OSError)
    assert batches(OSError("no such file"), given=100) == 100
    assert batches(OSError("no such file"), limit_train_batches=3) == 3
    with pytest.raises(FreezeError, match=r"^ours$"):
        batches(FreezeError("ours"))


@pytest.mark.parametrize("options", [{"limit_train_batches": 0}, {"limit_train_batches": 0.1}])
def test_an_epoch_without_a_batch_is_refused(options: Any) -> None:
    with pytest.raises(PlanError, match=r"an epoch has no batches: 5 in the dataloader, limited to"):
        batches(loader(), **options)


def test_a_window_is_as_long_as_the_trainer_or_its_scheduler_says() -> None:
    assert steps_per_window(trainer(accumulate_grad_batches=3)) == 3
    running = trainer(callbacks=[GradientAccumulationScheduler({0: 2, 4: 8})])
    assert steps_per_window(running) == 2
    running.fit_loop.epoch_progress.current.completed = 4
    assert steps_per_window(running) == 8
