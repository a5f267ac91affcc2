"""Measure the cost of one training step, and find why frozen layers still cost something."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from lightning_freeze.errors import PlanError
from lightning_freeze.model.dry_run import evaluated
from lightning_freeze.model.index import ModelIndex, tensor_bytes
from lightning_freeze.model.layers import has_statistics

_LOST = "None of the inputs have requires_grad=True"


@dataclass
class Cost:
    """The cost of one training step.

    Attributes:
        trainable: number of elements of trainable parameters.
        forward: floating-point operations of the forward pass.
        backward: floating-point operations of the backward pass, including recomputation by checkpointing.
        saved: bytes that autograd saves for the backward pass, without parameters.
        gradients: bytes of gradients.
        seconds: time of forward and backward in seconds.
        reasons: why frozen parameters still cost something.
        state: bytes of optimizer state; set by a caller that knows the optimizer.
    """

    trainable: int
    forward: int
    backward: int
    saved: int
    gradients: int
    seconds: float
    reasons: list[str] = field(default_factory=list)
    state: float | None = None


@dataclass
class _Notes:
    """Observations of modules in a forward pass, by name, in order of their calls."""

    saved: dict[str, dict[int, int]] = field(default_factory=dict)
    begins: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)


def cost(model: nn.Module, step: Callable[[], Tensor], repeats: int = 3) -> Cost:
    """Measure a training step of a model with its current flags and modes.

    Buffers, random state and gradients are restored; no optimizer steps.

    Args:
        model: the model to measure.
        step: computes the loss, as `training_step` does.
        repeats: number of timed steps; the median is reported.

    Raises:
        PlanError: nothing trains.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> batch = torch.randn(4, 8)
        >>> everything = cost(model, lambda: model(batch).sum())
        >>> _ = model[0].requires_grad_(False)
        >>> head = cost(model, lambda: model(batch).sum())
        >>> head.trainable, head.forward == everything.forward, head.saved < everything.saved
        (66, True, True)
    """
    index = ModelIndex(model)
    trainable = [parameter for parameter in index.parameters.values() if parameter.requires_grad]
    if not trainable:
        raise PlanError("nothing trains, so there is no step to measure")
    with evaluated(model), torch.enable_grad(), _gathered() as said:
        return _measured(index, trainable, step, repeats, said)


def _measured(
    index: ModelIndex,
    trainable: list[nn.Parameter],
    step: Callable[[], Tensor],
    repeats: int,
    said: list[warnings.WarningMessage],
) -> Cost:
    counted, notes = _flops(step), _Notes()
    _clear(trainable)
    with _watched(index, notes) as saved:
        step().backward()  # type: ignore[no-untyped-call]
    without = [
        name for name, parameter in index.parameters.items() if parameter.requires_grad and parameter.grad is None
    ]
    gradients = tensor_bytes([parameter.grad for parameter in trainable if parameter.grad is not None])
    times = []
    for _ in range(repeats):
        _clear(trainable)
        began = _now(trainable[0])
        step().backward()  # type: ignore[no-untyped-call]
        times.append(_now(trainable[0]) - began)
    size = sum(parameter.numel() for parameter in trainable)
    seconds = statistics.median(times) if times else 0.0
    found = Cost(size, *counted, sum(saved.values()), gradients, seconds, _reasons(index, notes, sum(saved.values())))
    found.reasons += _lost(without, said)
    return found


def _flops(step: Callable[[], Tensor]) -> tuple[int, int]:
    with FlopCounterMode(display=False) as forward:
        loss = step()
    counts = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=counts) as backward:
        loss.backward()  # type: ignore[no-untyped-call]
    return forward.get_total_flops(), backward.get_total_flops()


def _convolution_backward(
    gradient: Any, inputs: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, wanted: Any, **_: Any,
) -> int:  # fmt: skip
    """Each of the two gradients costs as much as the forward pass; torch's own formula ignores groups."""
    return int(conv_flop_count(inputs, weight, gradient, transposed=transposed)) * sum(map(bool, wanted[:2]))


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _now(parameter: Tensor) -> float:
    if parameter.is_cuda:
        torch.cuda.synchronize(parameter.device)
    return perf_counter()


@contextmanager
def _gathered() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings and pass them on afterwards, except those that `_lost` replaces."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    for one in caught:
        if _LOST not in str(one.message):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


@contextmanager
def _watched(index: ModelIndex, notes: _Notes) -> Iterator[dict[int, int]]:
    """Record the bytes that autograd saves per module, and the modules that the backward pass runs through."""
    saved: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in index.parameters.values()}
    stack: list[str] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            if stack:
                notes.saved.setdefault(stack[-1], {})[storage.data_ptr()] = storage.nbytes()
        return tensor

    handles = [handle for span in index.spans for handle in _notice(span.name, span.module, stack, notes)]
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield saved
    finally:
        for handle in handles:
            handle.remove()


def _notice(name: str, module: nn.Module, stack: list[str], notes: _Notes) -> list[Any]:
    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        stack.append(name)

    def after(part: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if stack:
            stack.pop()
        if not any(parameter is not None for parameter in part._parameters.values()):
            return
        flows_in, flows_out = (_needs_gradient(one) for one in ((args, kwargs), out))
        if flows_out and not flows_in:
            notes.begins.append(name)
        if flows_in and not any(p is not None and p.requires_grad for p in part._parameters.values()):
            notes.passed.append(name)

    options = {"with_kwargs": True}
    return [module.register_forward_pre_hook(before, **options), module.register_forward_hook(after, **options)]


def _needs_gradient(tree: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_flatten(tree)[0])


def _reasons(index: ModelIndex, notes: _Notes, saved: int) -> list[str]:
    found = []
    if notes.passed and notes.begins:
        first = notes.begins[0]
        found.append(
            f"the backward pass goes through frozen layers ({len(notes.passed)}, from '{notes.passed[0]}' on), because "
            f"'{first}' before them trains"
        )
    norms = [name for name in notes.begins if has_statistics(index.modules[name].module)]
    if norms and norms[0] == notes.begins[0] and notes.passed:
        found.append(
            f"'{norms[0]}' is a normalisation layer whose weight and bias train: freeze them "
            "(BatchNormEval(affine='freeze')), and the backward pass ends later"
        )
    keeps = {name: sum(notes.saved.get(name, {}).values()) for name in notes.passed}
    keeps = {name: size for name, size in keeps.items() if size > 0.01 * saved}
    if keeps:
        most = max(keeps, key=lambda name: keeps[name])
        kind = type(index.modules[most].module).__name__
        found.append(
            f"frozen layers behind something that trains ({len(keeps)}) hold {sum(keeps.values()) / 2**20:.2f} MiB of "
            f"their inputs for the backward pass, '{most}' ({kind}) the most: torch keeps a layer's input even where "
            "only the gradient of its weight would need it"
        )
    return found


def _lost(without: list[str], said: list[warnings.WarningMessage]) -> list[str]:
    if without and any(_LOST in str(one.message) for one in said):
        return [
            f"gradients are LOST: '{without[0]}' ({len(without)} parameters in all) trains and gets none, because "
            "torch.utils.checkpoint(use_reentrant=True) gives none where no input needs one, and what comes before is "
            "frozen; pass use_reentrant=False"
        ]
    if without:
        return [f"'{without[0]}' ({len(without)} parameters in all) trains and gets no gradient in this step"]
    return []
