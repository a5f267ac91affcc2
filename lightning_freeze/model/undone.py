"""Run code of a model and restore tensors, attributes, modes, gradients and random state afterwards.

Tensors are compared bit for bit and written only if they differ. Version counters prove nothing: BatchNorm writes its
statistics without raising them. Attributes are followed through containers and plain helper objects, so lists of a
metric get their former length. Files, printed text and the state of other libraries' helpers are not restored.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.model.dtensors import is_sharded, local_part, reshard

_MANY = 2000  # items; longer containers are restored, but their items are not followed
_PLAIN = frozenset({type(None), bool, int, float, str})  # nothing to follow; a shortcut
_OPAQUE = (type, str, bytes, int, float, ModuleType, FunctionType, BuiltinFunctionType, MethodType, torch.dtype)
# Their objects belong to a Trainer, to a loader or to an optimizer, not to the model.
_FOREIGN = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_freeze")


@contextmanager
def undone(model: nn.Module, *, weights: bool = True) -> Iterator[None]:
    """Restore a model, the objects in its attributes and random state after a block, also if the block raises.

    Args:
        model: the model, with its helpers. Modules of FSDP2 are sharded again.
        weights: whether the block may write parameters; False makes no copy of them.
    """
    memory = _Memory(weights)
    memory.take(model)
    with same_random_state():
        try:
            yield
        finally:
            memory.restore()
            reshard(module for module in model.modules() if is_sharded(module))


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

    def __init__(self, weights: bool) -> None:
        self.weights = weights
        self.seen: dict[int, Any] = {}  # keeps everything alive, so that no id is used twice
        self.tensors: list[_KeptTensor] = []
        self.containers: list[tuple[Any, Any]] = []
        self.empty: list[Any] = []  # apart from other containers: most modules have a dozen
        self.generators: list[tuple[Any, Any]] = []

    def take(self, root: object) -> None:
        """Copy an object and everything reachable from it."""
        waiting, seen = [root], self.seen
        while waiting:
            one = waiting.pop()
            if id(one) not in seen:
                seen[id(one)] = one
                waiting += [item for item in self._keep(one) if type(item) not in _PLAIN]

    def _keep(self, one: Any) -> Collection[Any]:
        """Copy one object, and return the objects in it."""
        if isinstance(one, dict | list | set | deque) and not one:
            self.empty.append(one)
            return ()
        if isinstance(one, dict):
            kept = dict(one)
            self.containers.append((one, kept))
            return kept.values() if len(kept) <= _MANY else ()
        if isinstance(one, Tensor):
            self.tensors.append(_KeptTensor(one, self.weights or not isinstance(one, nn.Parameter)))
            return ()
        if isinstance(one, nn.Module):
            return (vars(one),)
        if isinstance(one, list | set | deque):
            self.containers.append((one, list(one)))
        if isinstance(one, list | set | deque | tuple):
            return one if len(one) <= _MANY else ()
        if isinstance(one, _OPAQUE):
            return ()
        if (state := _state_of(one)) is not None:
            self.generators.append((one, state))
            return ()
        own = type(one).__module__.partition(".")[0] not in _FOREIGN
        return (vars(one),) if own and hasattr(one, "__dict__") else ()

    def restore(self) -> None:
        """Restore everything."""
        for container in self.empty:
            if container:
                container.clear()
        for container, kept in self.containers:
            _refill(container, kept)
        for tensor in self.tensors:
            tensor.restore()
        for generator, state in self.generators:
            _set_state(generator, state)


class _KeptTensor:
    def __init__(self, tensor: Tensor, copied: bool) -> None:
        self.tensor, self.alias = tensor, tensor.detach()
        self.value = self.alias.clone() if copied and not tensor.is_meta else None
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


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element -> integers alike


def _same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two dense tensors of one dtype have the same bits; `equal` alone takes NaN for different, -0 for 0."""
    if left.shape != right.shape:
        return False
    here, there = local_part(left), local_part(right)
    if here.is_complex():
        here, there = torch.view_as_real(here.resolve_conj()), torch.view_as_real(there.resolve_conj())
    kind = _WORDS[here.element_size()]
    return torch.equal(here.view(kind), there.view(kind))


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
