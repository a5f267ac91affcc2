"""Run code of a model and restore tensors, attributes, modes, gradients and random state afterwards.

Tensors are compared bit for bit and written only if they differ. Version counters prove nothing: BatchNorm writes its
statistics without raising them. Attributes are followed through containers and plain helper objects, so lists of a
metric get their former length. Files, printed text and the state of other libraries' helpers are not restored.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.model.dtensors import local_part
from lightning_freeze.model.fingerprint import tensor_hash

_MANY = 2000  # items; longer containers are restored, but their items are not followed
_OPAQUE = (type, str, bytes, int, float, ModuleType, FunctionType, BuiltinFunctionType, MethodType, torch.dtype)
# Their objects belong to a Trainer, to a loader or to an optimizer, not to the model.
_FOREIGN = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_freeze")


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Restore a model, the objects in its attributes and random state after a block, also if the block raises."""
    memory = _Memory()
    memory.take(model)
    with same_random_state():
        try:
            yield
        finally:
            memory.restore()


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore the global random state of Python, NumPy and torch after a block."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numbers = numpy.random.get_state() if numpy is not None else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(numbers)


class _Memory:
    """Copies of tensors, containers and generators."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}  # keeps everything alive, so that no id is used twice
        self.tensors: list[_KeptTensor] = []
        self.containers: list[tuple[Any, Any]] = []
        self.generators: list[tuple[Any, Any]] = []

    def take(self, root: object) -> None:
        """Copy an object and everything reachable from it."""
        waiting = [root]
        while waiting:
            one = waiting.pop()
            if one is None or isinstance(one, _OPAQUE) or id(one) in self.seen:
                continue
            self.seen[id(one)] = one
            waiting += self._keep(one)

    def _keep(self, one: Any) -> list[Any]:
        """Copy one object, and return the objects in it."""
        if isinstance(one, Tensor):
            self.tensors.append(_KeptTensor(one))
            return []
        if isinstance(one, dict | list | set | deque):
            kept = dict(one) if isinstance(one, dict) else list(one)
            self.containers.append((one, kept))
            values = list(kept.values()) if isinstance(kept, dict) else kept
            return values if len(values) <= _MANY else []
        if isinstance(one, tuple):
            return list(one) if len(one) <= _MANY else []
        if (state := _state_of(one)) is not None:
            self.generators.append((one, state))
            return []
        own = isinstance(one, nn.Module) or type(one).__module__.partition(".")[0] not in _FOREIGN
        return [vars(one)] if own and hasattr(one, "__dict__") else []

    def restore(self) -> None:
        """Restore everything."""
        for container, kept in self.containers:
            _refill(container, kept)
        for tensor in self.tensors:
            tensor.restore()
        for generator, state in self.generators:
            _set_state(generator, state)


class _KeptTensor:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.alias = tensor, tensor.detach()
        self.value = None if tensor.is_meta else self.alias.clone()
        self.required = tensor.requires_grad
        self.gradient = tensor.grad if tensor.is_leaf else None
        if self.gradient is not None:
            tensor.grad = None

    def restore(self) -> None:
        tensor = self.tensor
        if tensor.is_leaf:
            if tensor.requires_grad != self.required:
                tensor.requires_grad_(self.required)
            tensor.grad = self.gradient
        if self.value is None:
            return
        dense = tensor.layout == torch.strided
        if dense and local_part(tensor).data_ptr() != local_part(self.alias).data_ptr():
            tensor.data = self.alias
        # Written only where it differs: `copy_` into an expanded buffer raises, and counts as a write everywhere.
        if dense and not _same_bits(self.alias, self.value):
            if self.alias.shape != self.value.shape:
                self.alias.resize_(self.value.shape)
            with torch.no_grad():
                self.alias.copy_(self.value)


def _same_bits(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(tensor_hash(left) == tensor_hash(right))


def _refill(container: Any, kept: Any) -> None:
    if isinstance(container, dict):
        if list(container) != list(kept) or any(container[key] is not kept[key] for key in kept):
            container.clear()
            container.update(kept)
    elif isinstance(container, set):
        if container != set(kept):
            container.clear()
            container.update(kept)
    elif len(container) != len(kept) or any(a is not b for a, b in zip(container, kept, strict=True)):
        container.clear()
        container.extend(kept)


def _state_of(one: Any) -> Any:
    """The state of a random generator; None for anything else."""
    if isinstance(one, torch.Generator):
        return one.get_state()
    if isinstance(one, random.Random):
        return one.getstate()
    kind = type(one)
    if kind.__module__.startswith("numpy.random") and kind.__name__ in ("Generator", "RandomState"):
        return one.get_state() if kind.__name__ == "RandomState" else one.bit_generator.state
    return None


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
