"""Run one forward and restore modes, buffers and random state."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.model.index import ModelIndex
from lightning_freeze.model.undone import undone


def tensors_in(value: object) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    return []


def copied_for(index: ModelIndex, value: Any) -> Any:
    """Copy an input to the model's device, and cast it if all parameters share one floating-point dtype."""
    tensors = [*index.parameters.values(), *index.buffers.values()]
    dtypes = {tensor.dtype for tensor in index.parameters.values() if tensor.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None

    def move(item: Any) -> Any:
        if isinstance(item, Tensor):
            device = tensors[0].device if tensors else item.device
            return item.detach().to(device, dtype if item.is_floating_point() else None, copy=True)
        if isinstance(item, Mapping):
            return {key: move(entry) for key, entry in item.items()}
        if isinstance(item, tuple) and hasattr(item, "_fields"):  # a named tuple takes its items one by one
            return type(item)(*map(move, item))
        return type(item)(map(move, item)) if type(item) in (list, tuple) else item

    return move(value)


def dry_run(model: nn.Module, arguments: object, watch: AbstractContextManager[Any] | None = None) -> None:
    """Call a model in eval mode without gradients, as Lightning calls it with `example_input_array`.

    Args:
        model: the module to call.
        arguments: a tensor (the only argument), a tuple or list (positional arguments) or a dict (keyword arguments).
        watch: active during the call only, not while the model is copied and restored.
    """
    with evaluated(model), eagerly(), torch.no_grad(), watch or nullcontext():
        if isinstance(arguments, dict):
            model(**arguments)
        elif isinstance(arguments, list | tuple):
            model(*arguments)
        else:
            model(arguments)


def eagerly() -> AbstractContextManager[Any]:
    """Run compiled parts eagerly, so that one forward compiles nothing."""
    # Importing the compiler takes seconds; skip it when nothing is compiled.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause the garbage collector, which would go through a large model again and again. Also a decorator."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Run a block with the model in eval mode, and undo what it did to anything but parameters."""
    with undone(model, weights=False):
        for module in model.modules():  # not `model.eval()`: a `train` that the user overrides may do more
            vars(module)["training"] = False
        yield
