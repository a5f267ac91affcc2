"""Run one forward and restore modes, buffers and random state."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.model.dtensors import is_sharded, reshard
from lightning_freeze.model.fingerprint import tensor_hash
from lightning_freeze.model.index import ModelIndex


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)


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


def dry_run(model: nn.Module, arguments: object) -> None:
    """Call a model in eval mode without gradients, as Lightning calls it with `example_input_array`.

    Args:
        model: the module to call.
        arguments: a tensor (the only argument), a tuple or list (positional arguments) or a dict (keyword arguments).
    """
    with untouched(model), eagerly(), torch.no_grad():
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
def untouched(model: nn.Module) -> Iterator[None]:
    """Run a block with the model in eval mode, and undo what it did to modes, buffers and random state.

    That also holds when the block raises.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [dict(module._buffers.items()) for module in modules]
    values = {id(buffer): buffer.detach().clone() for own in buffers for buffer in own.values() if buffer is not None}
    python_state, devices = random.getstate(), {tensor.device for tensor in model.parameters()}
    with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
        try:
            # Not `model.eval()`: a `train` that the user overrides may do more than set flags.
            for module in modules:
                module.training = False
            yield
        finally:
            random.setstate(python_state)
            for module, mode, own in zip(modules, modes, buffers, strict=True):
                module.training = mode
                _restore_buffers(module, own, values)
            reshard(module for module in modules if is_sharded(module))


def _restore_buffers(module: nn.Module, own: Mapping[str, Tensor | None], values: Mapping[int, Tensor]) -> None:
    found = dict(module._buffers.items())
    if list(found) != list(own) or any(found[name] is not own[name] for name in own):
        module._buffers.clear()
        module._buffers.update(own)
    for buffer in own.values():
        # Written only where it differs: `copy_` into an expanded buffer raises, and counts as a write everywhere.
        if buffer is not None and not _same_bits(buffer, values[id(buffer)]):
            if buffer.shape != values[id(buffer)].shape:
                buffer.resize_(values[id(buffer)].shape)
            buffer.detach().copy_(values[id(buffer)])


def _same_bits(left: Tensor, right: Tensor) -> bool:
    if left.is_meta or left.shape != right.shape or left.layout != torch.strided:
        return left.is_meta
    return bool(tensor_hash(left) == tensor_hash(right))
