"""The training data in folds: nothing twice, nothing lost, each class in each fold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from lightning_freeze import PlanError
from lightning_freeze.suggest.folds import Folds, labels_of


def rows(count: int = 30, classes: int = 3) -> TensorDataset:
    return TensorDataset(torch.arange(count).float(), torch.arange(count) % classes)


def seen(loader: Any) -> list[int]:
    return [int(row) for batch in loader for row in batch[0].flatten()]


def test_each_example_is_held_out_once_and_never_trained_on_then() -> None:
    folds = Folds(DataLoader(rows(), 4, shuffle=True), 5)
    held = [seen(folds.val(fold)) for fold in range(folds.count)]
    assert sorted(row for out in held for row in out) == list(range(30))
    for fold, out in enumerate(held):
        assert sorted(seen(folds.train(fold)) + out) == list(range(30))


def test_each_fold_has_each_class() -> None:
    folds = Folds(DataLoader(rows(), 4, shuffle=True), 5)
    for fold in range(5):
        assert {row % 3 for row in seen(folds.val(fold))} == {0, 1, 2}


def test_the_order_is_the_same_for_every_candidate_and_shuffled_if_the_loader_was() -> None:
    folds = Folds(DataLoader(rows(), 4, shuffle=True), 3)
    first, again = seen(folds.train(0)), seen(folds.train(0))
    assert first == again != sorted(first)
    plain = seen(Folds(DataLoader(rows(), 4), 3).train(0))
    assert plain == sorted(plain)


def test_the_loader_keeps_its_options() -> None:
    def collate(batch: list[Any]) -> list[Any]:
        return [torch.stack([row for row, _ in batch]), "mine"]

    folds = Folds(DataLoader(rows(), 7, shuffle=True, collate_fn=collate, drop_last=True), 3)
    batches = [*folds.train(0)]
    assert [len(batch[0]) for batch in batches] == [7, 7]
    assert batches[0][1] == "mine"


def test_a_batch_larger_than_a_fold_is_not_dropped() -> None:
    folds = Folds(DataLoader(rows(12), 100, shuffle=True, drop_last=True), 3)
    assert len(seen(folds.train(0))) == 8


def test_a_rare_class_makes_fewer_folds_and_says_so() -> None:
    data = TensorDataset(torch.arange(20.0), torch.tensor([0] * 10 + [1] * 7 + [2] * 3))
    folds = Folds(DataLoader(data, 4, shuffle=True), 5)
    assert folds.count == 3
    assert folds.remarks == ["3 folds, not 5: the smallest class has 3 training example(s)."]


def test_one_class_is_an_error() -> None:
    with pytest.raises(PlanError, match="all 30 training examples have the same label"):
        Folds(DataLoader(rows(classes=1), 4))


def test_one_example_is_an_error() -> None:
    with pytest.raises(PlanError, match="has 1 examples, and at least 2 are needed"):
        Folds(DataLoader(rows(1), 4))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(torch.arange(40).float())


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), 8),
        DataLoader(rows(40), 8, sampler=WeightedRandomSampler([1.0] * 40, 40)),
        [torch.arange(8).float() + 8 * place for place in range(5)],
    ],
    ids=["stream", "sampler", "list"],
)
def test_what_cannot_be_cut_by_example_is_cut_by_batch_and_says_so(loader: Any) -> None:
    folds = Folds(loader, 5)
    assert folds.batches == folds.count == 5
    assert "first 5 batches were read once" in folds.remarks[0]
    assert len([*folds.train(0)]) == 4
    assert len([*folds.val(0)]) == 1


def test_labels_are_found_without_loading_an_example() -> None:
    class Files(Dataset[Any]):
        targets = [0, 1] * 5

        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("an example was loaded")

    assert labels_of(Subset(Files(), [1, 3, 4])).tolist() == [1, 1, 0]  # type: ignore[union-attr]
    assert labels_of(TensorDataset(torch.zeros(6, 2), torch.zeros(6))) is None  # a target to regress to
    assert labels_of(TensorDataset(torch.zeros(6, 2), torch.arange(6))) is None  # a number of its own for each
    assert labels_of([1, 2, 3]) is None
