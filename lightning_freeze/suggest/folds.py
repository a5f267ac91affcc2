"""Divide the training data into folds: most for training, the rest for validation. The test set is never read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset

from lightning_freeze.errors import PlanError

_KEPT = 256  # maximum number of stored batches of data that can be read only in order


class Folds:
    """A training loader divided into `count` pairs of loaders.

    Args:
        loader: a copy of the user's training loader; it is read.
        count: maximum number of folds; there are fewer if a class has fewer examples.
        seed: seed of the division and of the order of batches.

    Attributes:
        count: number of folds.
        batches: number of batches per epoch in the user's loader.
        remarks: sentences about the division for the user.

    Raises:
        PlanError: there are fewer than two examples or two classes.
    """

    def __init__(self, loader: Any, count: int = 5, seed: int = 0) -> None:
        self.seed, self.remarks = seed, list[str]()
        self._loader = loader if _can_be_cut(loader) else None
        self._rows: Any = loader.dataset if self._loader is not None else self._read(loader)
        rows = len(self._rows)
        if rows < 2:
            raise PlanError(
                f"the training data has {rows} {'examples' if self._loader is not None else 'batches'}, and at least 2 "
                "are needed: one to train on, one to judge on"
            )
        self.count = min(count, rows)
        self.parts = self._divide(rows)
        self.batches = len(loader) if self._loader is not None else rows

    def _read(self, loader: Any) -> list[Any]:
        kept = list(islice(iter(loader), _KEPT))
        self.remarks.append(
            f"The training loader is not a plain DataLoader with torch's own order, so the first {len(kept)} batches "
            "were read once, and the folds are made of whole batches."
        )
        return kept

    def _divide(self, rows: int) -> list[list[int]]:
        """The indices of each fold; each fold has the same number of examples of each class."""
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed))
        labels = labels_of(self._rows) if self._loader is not None else None
        if labels is None:
            return [order[fold :: self.count].tolist() for fold in range(self.count)]
        classes, sizes = torch.unique(labels, return_counts=True)
        if len(sizes) < 2:
            raise PlanError(
                f"all {rows} training examples have the same label, so no way to train can be told from another.\n"
                "  Check the labels of the training data"
            )
        self._limit(int(sizes.min()))
        grouped = torch.cat([order[labels[order] == label] for label in classes])
        return [grouped[fold :: self.count].tolist() for fold in range(self.count)]

    def _limit(self, smallest: int) -> None:
        if smallest < self.count:
            fewer = max(2, smallest)
            self.remarks.append(
                f"{fewer} folds, not {self.count}: the smallest class has {smallest} training example(s)."
            )
            self.count = fewer

    def train(self, fold: int) -> Any:
        """The training data without this fold, in the same order for every candidate."""
        places = [place for other, part in enumerate(self.parts) if other != fold for place in part]
        return self._make(sorted(places), shuffle=self._shuffled())

    def val(self, fold: int) -> Any:
        """The held-out fold."""
        return self._make(sorted(self.parts[fold]), shuffle=False)

    def _shuffled(self) -> bool:
        return self._loader is None or isinstance(self._loader.sampler, RandomSampler)

    def _make(self, places: Sequence[int], shuffle: bool) -> Any:
        generator = torch.Generator().manual_seed(self.seed) if shuffle else None
        if self._loader is None:
            kept = [self._rows[place] for place in places]
            return DataLoader(kept, batch_size=None, shuffle=shuffle, generator=generator, collate_fn=_as_it_is)  # type: ignore[arg-type]
        old = self._loader
        return DataLoader(
            Subset(old.dataset, list(places)), old.batch_size, shuffle=shuffle, generator=generator,
            collate_fn=old.collate_fn, num_workers=old.num_workers, pin_memory=old.pin_memory, timeout=old.timeout,
            drop_last=shuffle and old.drop_last and len(places) >= old.batch_size, worker_init_fn=old.worker_init_fn,
        )  # fmt: skip


def _as_it_is(batch: Any) -> Any:
    return batch


def _can_be_cut(loader: Any) -> bool:
    """Whether a loader loads single examples with one of torch's own samplers."""
    return (
        type(loader) is DataLoader
        and loader.batch_size is not None
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
        and len(loader.sampler) == len(loader.dataset)  # type: ignore[arg-type]
    )


def labels_of(dataset: Any) -> Tensor | None:
    """The class of each example, if the dataset stores them in an attribute; no example is loaded."""
    if isinstance(dataset, Subset):
        inner = labels_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(list(dataset.indices))]
    if isinstance(dataset, TensorDataset):
        return _classes(dataset.tensors[-1], len(dataset))
    for name in ("targets", "labels", "y", "target", "label"):
        if (found := _classes(getattr(dataset, name, None), len(dataset))) is not None:
            return found
    return None


def _classes(values: Any, length: int) -> Tensor | None:
    """The classes, if the values are integers, one per example, with far fewer distinct values than examples."""
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    if found.dim() != 1 or len(found) != length or found.is_floating_point() or found.is_complex():
        return None
    return found if len(torch.unique(found)) <= max(2, length // 2) else None
