"""The memory of activations in one training step, from a step on meta tensors, which computes and allocates nothing."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_freeze.model.dtensors import is_sharded
from lightning_freeze.model.undone import undone
from lightning_freeze.preview.one_step import loss_of

_META = torch.device("meta")
_VALUES = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


def activations(module: Any, batch: Any) -> int:
    """The peak memory of a training step without weights, gradients of parameters and optimizer state, in bytes.

    The module may be on any device and sharded by FSDP2: for the length of the step, its parameters and buffers are
    replaced by whole tensors on the meta device. The module's flags and modes decide what autograd saves. Attention
    counts as a fused kernel, which saves no matrix of weights. Activations that gradient checkpointing computes again
    count while they exist. Python code that reads a value gets 1 or True: a mask that selects everything.

    Args:
        module: a LightningModule with its current flags and modes.
        batch: a batch of its training data, on any device.

    Raises:
        Exception: whatever `training_step` raises on the meta device, such as an operator without a meta kernel.

    Example:
        >>> import lightning.pytorch as pl
        >>> class Head(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = nn.Linear(8, 2)
        ...     def training_step(self, batch, batch_idx):
        ...         return self.head(batch).sum()
        >>> activations(Head(), torch.randn(16, 8)) > 16 * 2 * 4
        True
    """
    whole = {name: _meta(tensor) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    with undone(module), _without_sharding(module), _reparametrize_module(module, whole), torch.enable_grad():
        batch = module.transfer_batch_to_device(batch, _META, 0)
        memory = _Memory()
        with memory, _fused_attention():
            loss_of(module, batch).backward()  # type: ignore[no-untyped-call]
    gradients = [tensor.grad for tensor in whole.values() if tensor.grad is not None]
    return memory.peak(gradients)


@contextmanager
def checkpointed(module: nn.Module) -> Iterator[bool]:
    """Turn on gradient checkpointing of transformers models for a block. Yields whether anything was turned on."""
    function = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    able = [part for part in module.modules() if getattr(part, "gradient_checkpointing", None) is False]
    before = [dict(vars(part)) for part in able]
    for part in able:
        vars(part).update(gradient_checkpointing=True, _gradient_checkpointing_func=function)
    try:
        yield bool(able)
    finally:
        for part, attributes in zip(able, before, strict=True):
            vars(part).clear()
            vars(part).update(attributes)


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.shape, _strides(tensor.shape), dtype=tensor.dtype, device=_META, requires_grad=tensor.requires_grad
    )


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device=_META).stride()


@contextmanager
def _without_sharding(module: nn.Module) -> Iterator[None]:
    """Remove the hooks in which FSDP2 gathers parameters, for a block."""
    removed: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for part in filter(is_sharded, module.modules()):
        state = part._get_fsdp_state()  # type: ignore[operator]
        for handle, hooks in (
            (state._pre_forward_hook_handle, part._forward_pre_hooks),
            (state._post_forward_hook_handle, part._forward_hooks),
        ):
            removed.append((hooks, dict(hooks)))
            hooks.pop(handle.id, None)
    try:
        yield
    finally:
        for hooks, before in removed:
            hooks.clear()
            hooks.update(before)


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record when storages are allocated and freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events: list[tuple[int, int]] = []  # number of a storage, and the change in bytes
        self._known: dict[int, tuple[int, Any]] = {}  # id of a living storage -> its number, and a weak reference

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(tensor.untyped_storage()) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        if func in _VALUES:
            return args[0].new_ones((), device="cpu").item()
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in before:
                self._allocated(tensor.untyped_storage())
        return result

    def _allocated(self, storage: Any) -> None:
        if id(storage) in self._known:
            return
        number, key, size = len(self._events), id(storage), storage.nbytes()

        def freed(_: Any) -> None:
            self._events.append((number, -size))
            self._known.pop(key, None)

        self._events.append((number, size))
        self._known[key] = number, weakref.ref(storage, freed)

    def peak(self, without: list[Tensor]) -> int:
        """The largest sum of living storages, in bytes, without those of some tensors."""
        left_out = {self._known[id(t.untyped_storage())][0] for t in without if id(t.untyped_storage()) in self._known}
        now = most = 0
        for number, change in self._events:
            now += 0 if number in left_out else change
            most = max(most, now)
        return most


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Let attention on meta tensors save what fused kernels save; torch's own choice there is the unfused one."""

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return _Fused.apply(query, key, value)

    own, functional.scaled_dot_product_attention = functional.scaled_dot_product_attention, fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
