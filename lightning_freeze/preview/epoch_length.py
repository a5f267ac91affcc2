"""Count the batches of an epoch without reading one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lightning_freeze.errors import FreezeError, PlanError


def batches_of(trainer: Any, source: Any, processes: int, given: int | None) -> int:
    """The number of batches per epoch and process, with the limits of the trainer.

    Args:
        trainer: the trainer with its limits.
        source: the data module, or the model with the dataloaders.
        processes: number of processes that share the batches.
        given: the length of the loader, if the user gives it.

    Raises:
        PlanError: the loader has no length, or cannot be built.
    """
    limit = 1.0 if trainer.fast_dev_run else trainer.overfit_batches or trainer.limit_train_batches
    if trainer.fast_dev_run:
        return int(trainer.fast_dev_run)
    length = given
    if length is None:
        try:
            length = _length(source.train_dataloader(), trainer, processes)
        except FreezeError:
            raise
        except Exception as error:
            if not isinstance(limit, int):
                raise PlanError(
                    f"the training dataloader cannot be made: {type(error).__name__}: {error}\n  To go on without the "
                    "data, say how many batches an epoch has: --steps-per-epoch 100"
                ) from error
            length = limit
    if length is None and not isinstance(limit, int):
        raise PlanError(
            "the training dataloader has no length, so the length of an epoch is not known.\n"
            "  Say how many batches it has: --steps-per-epoch 100"
        )
    found = limit if length is None else min(length, limit) if isinstance(limit, int) else int(length * limit)
    if found < 1:
        raise PlanError(f"an epoch has no batches: {length} in the dataloader, limited to {limit}")
    return int(found)


def _length(loader: Any, trainer: Any, processes: int) -> int | None:
    """The length of the longest loader, because Lightning cycles through the others; None if it is unknown."""
    mode = getattr(loader, "_mode", "max_size_cycle")  # a CombinedLoader
    loaders = _flat(getattr(loader, "iterables", loader))
    lengths = [_of_one(one, trainer, processes) for one in loaders]
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths) or not known:
        return None
    return sum(known) if mode == "sequential" else min(known) if mode == "min_size" else max(known)


def _flat(loader: Any) -> list[Any]:
    if isinstance(loader, Mapping):
        return [one for value in loader.values() for one in _flat(value)]
    if type(loader) in (list, tuple):
        return [one for value in loader for one in _flat(value)]
    return [loader]


def _of_one(loader: Any, trainer: Any, processes: int) -> int | None:
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):
        return None
    sharded = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    if processes == 1 or sharded or not getattr(trainer._accelerator_connector, "use_distributed_sampler", True):
        return length
    if isinstance(loader, DataLoader) and loader.batch_size is not None:
        rows = math.ceil(len(loader.dataset) / processes)  # type: ignore[arg-type]
        return rows // loader.batch_size if loader.drop_last else math.ceil(rows / loader.batch_size)
    return math.ceil(length / processes)


def steps_per_window(trainer: Any) -> int:
    """The number of batches per optimizer step in the trainer's current epoch."""
    for callback in trainer.callbacks:
        if hasattr(callback, "get_accumulate_grad_batches"):
            return int(callback.get_accumulate_grad_batches(trainer.current_epoch))
    return int(trainer.accumulate_grad_batches)
