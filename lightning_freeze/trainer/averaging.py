"""Keep frozen parameters out of Lightning's weight averages, SWA and EMA.

At the end both write averages over all parameters. SWA also resets the statistics of every BatchNorm to recompute them
in an extra epoch, which would leave a held layer with zeros. During a fit their methods are shadowed on the instance,
and frozen parameters and held statistics are restored bit for bit.

In the average itself, frozen parameters share the tensors of the model: they take no memory and no space in a
checkpoint, and rounding does not move them. The average of a stage starts with its value at the unfreezing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from lightning_freeze.engine.run_view import RunView
from lightning_freeze.model.class_names import is_named
from lightning_freeze.model.dtensors import is_sharded_tensor
from lightning_freeze.model.index import buffers_of, tensors_of

# The methods that write parameters or buffers of the model, apart from a swap that is undone.
_METHODS = ("transfer_weights", "reset_batch_norm_and_save_state", "_copy_average_to_current")


def protect(callbacks: Sequence[Any], view: Callable[[], RunView]) -> None:
    """Let weight averages write only trainable parameters, until `unprotect`.

    Args:
        callbacks: all callbacks of the Trainer.
        view: returns a view of the current run.
    """
    for callback in _averages(callbacks):
        for method in _METHODS:
            if hasattr(type(callback), method):
                setattr(callback, method, partial(_protected, callback, method, view))
        if (average := _average_of(callback)) is not None:
            average.update_parameters = partial(_update, average, view)


def unprotect(callbacks: Sequence[Any]) -> None:
    """Undo `protect`."""
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
def share(callbacks: Sequence[Any], model: Any, run: RunView) -> None:
    """Let an average and its model share the tensors of frozen parameters. Called after each change.

    An unfrozen parameter gets its own tensor in the average, with its value at the unfreezing.

    Args:
        callbacks: all callbacks of the Trainer.
        model: the LightningModule.
        run: the run after the change.
    """
    trains = _trains(run)
    for average in filter(None, map(_average_of, callbacks)):
        for mean, own in zip(average.module.parameters(), model.parameters(), strict=True):
            if id(own) in trains:
                if mean.data_ptr() == own.data_ptr():
                    mean.data = own.detach().clone()
            elif mean.device != own.device or is_sharded_tensor(own):
                mean.copy_(own)
            else:
                mean.data = own.detach()


def _average_of(callback: Any) -> Any:
    """The running average of a Lightning callback; None for SWA, which keeps a plain copy."""
    average = getattr(callback, "_average_model", None) if is_named(callback, "WeightAveraging") else None
    return average if hasattr(average, "update_parameters") else None


def _trains(run: RunView) -> set[int]:
    return {id(run.index.parameters[name]) for name in run.trainable}


class _Part:
    """A model, or the average of one, that shows some of its parameters and all of its buffers."""

    def __init__(self, whole: Any, module: Any, parameters: list[Any]) -> None:
        self._whole, self._module, self._parameters = whole, module, parameters

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    @property
    def module(self) -> _Part:
        return self

    def parameters(self) -> list[Any]:
        return self._parameters

    def buffers(self) -> Iterator[Any]:
        buffers: Iterator[Any] = self._module.buffers()
        return buffers


@torch.no_grad()
def _update(average: Any, view: Callable[[], RunView], model: Any) -> None:
    run = view()
    trains = _trains(run)
    pairs = list(zip(average.module.parameters(), model.parameters(), strict=True))
    means, ours = ([pair[place] for pair in pairs if id(pair[1]) in trains] for place in (0, 1))
    type(average).update_parameters(_Part(average, average.module, means), _Part(model, model, ours))
    held = {id(tensor) for tensor in tensors_of(run.index, buffers_of(run.index, run.held)).values()}
    for mean, buffer in zip(average.module.buffers(), model.buffers(), strict=True):
        if id(buffer) in held:
            mean.copy_(buffer)


def _as_defined(cls: type, method: str) -> Any:
    """The attribute as its class has it: a staticmethod stays one."""
    return next(vars(base)[method] for base in cls.__mro__ if method in vars(base))


@contextmanager
def _kept(run: RunView) -> Iterator[None]:
    """Restore the current bits of frozen parameters and of buffers of held modules after a block."""
    index = run.index
    names = [name for name in index.parameters if name not in run.trainable] + buffers_of(index, run.held)
    before = {name: tensor.detach().clone() for name, tensor in tensors_of(index, names).items()}
    yield
    with torch.no_grad():
        for name, tensor in tensors_of(index, names).items():
            tensor.copy_(before[name])
