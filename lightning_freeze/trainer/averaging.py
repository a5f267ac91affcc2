"""Lightning's averages of weights, SWA and EMA, leave alone what is frozen.

At the end both write averages over all parameters, and SWA resets the statistics of every BatchNorm to fill them
anew in an epoch of forwards: a held layer would be left with zeros. Their methods are shadowed on the instance
for the length of a fit, and what is frozen at that moment is put back bit for bit.

Within the average itself, what is frozen has the bits of the model after each update: the rounding of a running
average would move it, and the average of a stage begins at the value that it is unfrozen with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch

from lightning_freeze.engine.run_view import RunView
from lightning_freeze.model.class_names import is_named
from lightning_freeze.model.index import buffers_of, tensors_of

# The methods that write parameters or buffers of the model, apart from a swap that is undone.
_METHODS = ("transfer_weights", "reset_batch_norm_and_save_state", "_copy_average_to_current")


def protect(callbacks: Sequence[Any], view: Callable[[], RunView]) -> None:
    """Let averages beside us write only what trains, until `unprotect`.

    Args:
        callbacks: all of the Trainer.
        view: returns the run as it is now.
    """
    for callback in _averages(callbacks):
        for method in _METHODS:
            if hasattr(type(callback), method):
                setattr(callback, method, partial(_protected, callback, method, view))
        if (average := getattr(callback, "_average_model", None)) is not None and hasattr(average, "update_parameters"):
            average.update_parameters = partial(_update, average, view)


def unprotect(callbacks: Sequence[Any]) -> None:
    """Leave averages as they were before `protect`."""
    for callback in _averages(callbacks):
        for method in _METHODS:
            vars(callback).pop(method, None)
        vars(getattr(callback, "_average_model", None) or callback).pop("update_parameters", None)


def _averages(callbacks: Sequence[Any]) -> list[Any]:
    return [one for one in callbacks if is_named(one, "StochasticWeightAveraging", "WeightAveraging")]


def _protected(callback: Any, method: str, view: Callable[[], RunView], *args: Any) -> Any:
    original = getattr(type(callback), method)
    bound = args if isinstance(_as_defined(type(callback), method), staticmethod) else (callback, *args)
    run = view()
    with _kept(run):
        result = original(*bound)
        for place in run.held:  # SWA would fill their statistics anew
            module: Any = run.index.spans[place].module
            momenta = getattr(callback, "momenta", {})
            if module in momenta:
                module.momentum = momenta.pop(module)
    return result


@torch.no_grad()
def _update(average: Any, view: Callable[[], RunView], model: Any) -> None:
    type(average).update_parameters(average, model)
    run = view()
    kept = [name for name in run.index.parameters if name not in run.trainable] + buffers_of(run.index, run.held)
    frozen = {id(tensor) for tensor in tensors_of(run.index, kept).values()}
    ours = chain(model.parameters(), model.buffers())
    for mean, tensor in zip(chain(average.module.parameters(), average.module.buffers()), ours, strict=True):
        if id(tensor) in frozen:
            mean.copy_(tensor)


def _as_defined(cls: type, method: str) -> Any:
    """The attribute as its class has it: a staticmethod stays one."""
    return next(vars(base)[method] for base in cls.__mro__ if method in vars(base))


@contextmanager
def _kept(run: RunView) -> Iterator[None]:
    """Put frozen parameters, and the buffers of held modules, back to the bits they have now."""
    index = run.index
    names = [name for name in index.parameters if name not in run.trainable] + buffers_of(index, run.held)
    before = {name: tensor.detach().clone() for name, tensor in tensors_of(index, names).items()}
    yield
    with torch.no_grad():
        for name, tensor in tensors_of(index, names).items():
            tensor.copy_(before[name])
