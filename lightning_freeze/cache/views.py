"""Limit a loader to K augmented versions of each sample, with a seed per sample for its random transforms.

The sampler sends a seed with each index. When the dataset gets this index, in this process or in a worker, the random
state of Python, NumPy and torch is set to the seed during the call, and restored afterwards.
"""

from __future__ import annotations

import operator
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, MapDataPipe

from lightning_freeze.errors import PlanError


class Drawn(NamedTuple):
    """An index of a dataset, with a seed for its random transforms."""

    index: Any
    seed: int


def seed_of(*parts: Any) -> int:
    """A 64-bit seed from numbers and texts, the same on every machine.

    Raises:
        PlanError: a part has a type without a fixed text.

    Examples:
        >>> seed_of(0, 1, 7) == seed_of(0, 1, torch.tensor(7)) != seed_of(0, 7, 1)
        True
    """
    return int.from_bytes(blake2b(repr(_plain(parts)).encode(), digest_size=8).digest(), "little")


def _plain(part: Any) -> Any:
    if isinstance(part, str):
        return str(part)  # NumPy numbers have other texts
    if part is None or type(part) is bytes:
        return part
    if isinstance(part, tuple):
        return tuple(map(_plain, part))
    try:
        return operator.index(part)
    except TypeError:
        raise PlanError(
            f"FeatureCache: the sampler of the training loader yields indices of type {type(part).__name__}, and "
            "views=K needs one sample per index: a whole number, a text, or a tuple of these.\n"
            "  Let the sampler yield such indices, or leave out views"
        ) from None


@contextmanager
def kept() -> Iterator[None]:
    """Restore the random state of Python, NumPy and torch (CPU) after a block.

    Examples:
        >>> before = torch.get_rng_state()
        >>> with kept():
        ...     seed_all(3)
        ...     drawn = random.random(), torch.rand(1).item()
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    numpy = sys.modules.get("numpy")
    python, torchs = random.getstate(), torch.default_generator.get_state()
    numpys = numpy.random.get_state() if numpy is not None else None
    try:
        yield
    finally:
        random.setstate(python)
        torch.default_generator.set_state(torchs)
        if numpy is not None:
            numpy.random.set_state(numpys)


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (CPU)."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed & 0xFFFFFFFF)


class ViewedDataset(Dataset[Any]):
    """A map-style dataset that uses the seed of a `Drawn` index. Otherwise it behaves like the dataset: attributes are
    read and written there, and `isinstance` gives the same answers.

    Args:
        dataset: a dataset with `__getitem__`.
    """

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_viewed", dataset)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return ViewedDataset, (self._viewed,)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_viewed"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._viewed, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._viewed, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._viewed.__class__

    def __len__(self) -> int:
        return len(self._viewed)

    def __repr__(self) -> str:
        return repr(self._viewed)

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([index])[0] if type(index) is Drawn else self._viewed[index]

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """Load samples one by one, because a version belongs to a sample, not to a batch."""
        several = getattr(self._viewed, "__getitems__", None)
        if not all(type(index) is Drawn for index in indices):
            return [self._viewed[index] for index in indices] if several is None else several(indices)
        found = []
        with kept():
            for index, seed in indices:
                seed_all(seed)
                found.append(self._viewed[index] if several is None else several([index])[0])
        return found


class Drawing:
    """A sampler or batch sampler whose indices carry a seed. Otherwise it behaves like the original sampler.

    Args:
        sampler: yields indices, or batches of indices.
        batches: whether it yields batches.
        draw: called at the start of a pass; returns a function from an index to a seed.

    Attributes:
        begun: whether a pass has begun.
    """

    def __init__(self, sampler: Any, batches: bool, draw: Callable[[], Callable[[Any], int]]) -> None:
        self._sampler, self._batches, self._draw, self.begun = sampler, batches, draw, False

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":  # while the object is being copied
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        indices = iter(self._sampler)
        seed, self.begun = self._draw(), True
        for one in indices:
            yield [Drawn(index, seed(index)) for index in one] if self._batches else Drawn(one, seed(one))


def why_not(loader: Any) -> str:
    """Why a loader cannot have versions; "" if it can."""
    if not isinstance(loader, DataLoader):
        return f"is a {type(loader).__name__} and no torch DataLoader, so nobody can tell which sample a row comes from"
    if isinstance(loader.dataset, IterableDataset | MapDataPipe):
        kind = type(loader.dataset).__name__
        return f"reads an iterable dataset ({kind}), whose samples have no index to draw the same version by"
    if loader.batch_sampler is None and isinstance(loader.sampler, BatchSampler):
        return "asks the dataset for a whole batch at once (batch_size=None), so a version would belong to a batch"
    if getattr(loader, "worker_method", None) == "thread":
        return "has threads as workers, which share one random state"
    return ""


def viewed(loader: DataLoader[Any], draw: Callable[[], Callable[[Any], int]]) -> tuple[DataLoader[Any], Drawing]:
    """Make a copy of a loader that draws versions, and return it with its sampler. The loader is not changed.

    Args:
        loader: a loader that `why_not` accepts.
        draw: see `Drawing`.

    Examples:
        >>> class Noise(Dataset):
        ...     def __len__(self): return 4
        ...     def __getitem__(self, index): return torch.rand(1)
        >>> twin, _ = viewed(DataLoader(Noise(), batch_size=2), lambda: lambda index: seed_of(0, index))
        >>> torch.equal(*(torch.cat(list(twin)) for _ in range(2)))
        True
    """
    batches = loader.batch_sampler is not None
    drawing = Drawing(loader.batch_sampler if batches else loader.sampler, batches, draw)
    twin = object.__new__(type(loader))
    twin.__dict__.update(loader.__dict__)  # a loader does not allow its attributes to be set
    twin.__dict__.update({"dataset": ViewedDataset(loader.dataset), "_iterator": None})
    twin.__dict__["batch_sampler" if batches else "sampler"] = drawing
    return twin, drawing
