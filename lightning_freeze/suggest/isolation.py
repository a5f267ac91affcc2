"""Make copies for training, so that the user's module, data and random state do not change."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lightning_freeze.errors import PlanError


def copy_of_module(module: Any) -> Any:
    """Copy a LightningModule without its Trainer.

    Raises:
        PlanError: the module cannot be copied.
    """
    memo: dict[int, Any] = {id(vars(module)[name]): None for name in ("_trainer", "_fabric") if vars(module).get(name)}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise PlanError(
            f"{type(module).__name__} cannot be copied, and suggest trains copies only: {type(error).__name__}: "
            f"{error}\n  Create what cannot be copied (files, locks, connections) in setup() or configure_model()"
        ) from error


def copy_of_data(data: Any) -> Any:
    """Copy a data module, dataset or loader; tensors and arrays are shared with the original."""
    memo: dict[int, Any] = {}
    _keep_arrays(data, memo, set())
    trainer = getattr(data, "trainer", None)
    if trainer is not None:
        memo[id(trainer)] = None
    try:
        return copy.deepcopy(data, memo)
    except Exception as error:
        raise PlanError(
            f"{type(data).__name__} cannot be copied: {type(error).__name__}: {error}\n  Give suggest a "
            "LightningDataModule that opens its files in setup()"
        ) from error


def _keep_arrays(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        memo[id(value)] = value
    elif isinstance(value, Mapping):
        for item in value.values():
            _keep_arrays(item, memo, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            _keep_arrays(item, memo, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        _keep_arrays(vars(value), memo, seen)


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore the random state of torch (all devices), Python and NumPy at the end."""
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    torch_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        if cuda_state:
            torch.cuda.set_rng_state_all(cuda_state)
        if numpy is not None and numpy_state is not None:
            numpy.random.set_state(numpy_state)


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    torch.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
