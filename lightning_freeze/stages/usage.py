"""Record one forward: when each parameter is first used, and which parameters its input depends on.

A `TorchFunctionMode` sees uses that module hooks miss: parameters owned by the root, functional calls, tied weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from lightning_freeze.errors import PlanError
from lightning_freeze.model.dry_run import copied_for, dry_run, tensors_in
from lightning_freeze.model.index import ModelIndex, ModuleSpan
from lightning_freeze.stages.flow import Flow

# Bit 0 of a mask: the tensor comes from the example input. Bit k + 1: parameter k went into it.
FROM_INPUT = 1
_PRODUCTS = {
    "linear",
    "matmul",
    "__matmul__",
    "__rmatmul__",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "einsum",
    "tensordot",
    "t",
}
_CONVOLUTIONS = {f"conv{transposed}{rank}d" for transposed in ("", "_transpose") for rank in (1, 2, 3)}
_CONTRACTIONS = _PRODUCTS | _CONVOLUTIONS | {"bilinear", "embedding", "embedding_bag"}
_SUMS = {"add", "__add__", "__radd__", "__iadd__", "add_"}
_ADDITIONS = _SUMS | {"cat", "concat", "stack", "expand", "expand_as", "repeat", "repeat_interleave", "tile"}


@dataclass
class Usage:
    """The record of one forward; empty if there was none.

    Attributes:
        first: parameter name -> time of its first use in a torch function, on the same clock as `calls`.
        inputs: parameter name -> mask of the sources of the data at its first use.
        weights: parameters first used in a matrix product, a convolution or a lookup.
        tokens: parameters first added to the data or concatenated with it: positions and class tokens.
        calls: id of a module -> time of its first call.
        looped: ids of modules that ran again on their own output: the layer of ALBERT, the update of RAFT.
        flow: the data flow.
    """

    first: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    calls: dict[int, int] = field(default_factory=dict)
    looped: set[int] = field(default_factory=set)
    flow: Flow = field(default_factory=Flow)


class UsageMode(TorchFunctionMode):
    """Fill a `Usage` during a forward: order of use, masks of data sources, and the data flow.

    Args:
        index: the model.
        inputs: the inputs of the forward.
        with_gradient: record only operations in grad mode; averaging weights is not a use of them.
    """

    def __init__(self, index: ModelIndex, inputs: object = (), *, with_gradient: bool = False) -> None:
        super().__init__()
        self.index, self.usage, self.clock = index, Usage(), itertools.count()
        self.with_gradient = with_gradient
        self.names = list(index.parameters)
        self.bit = {name: 1 << bit for bit, name in enumerate(self.names, start=1)}
        self.masks: MutableMapping[Tensor, int] = WeakIdKeyDictionary()
        # tensor -> the node of the flow that computed it, or the parameters it was computed from; empty for a buffer
        self.origins: MutableMapping[Tensor, int | tuple[str, ...]] = WeakIdKeyDictionary()
        self.met_data: dict[Any, bool] = {}  # node of autograd -> whether its inputs include data, not only parameters
        self.parameters: dict[int, tuple[str, Tensor]] = {}
        for name, parameter in index.parameters.items():
            self._know(name, parameter)
        self.origins.update(dict.fromkeys(index.buffers.values(), ()))
        self.take_inputs(inputs)

    def take_inputs(self, inputs: object) -> None:
        """Track the inputs of the forward."""
        for tensor in tensors_in(inputs):
            self.masks[tensor] = FROM_INPUT

    def _know(self, name: str, parameter: Tensor) -> None:
        self.parameters[id(parameter)] = name, parameter

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of a parameter, or of its unsharded copy in an FSDP2 forward."""
        known = self.parameters.get(id(tensor))
        return None if known is None else known[0]

    def _mask(self, tensor: Tensor) -> int:
        name = self.name_of(tensor)
        return self.masks.get(tensor, 0) if name is None else self.bit[name]

    def _origin(self, tensor: Tensor) -> int | tuple[str, ...] | None:
        name = self.name_of(tensor)
        return self.origins.get(tensor) if name is None else (name,)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.with_gradient and not torch.is_grad_enabled():
            return result
        name = getattr(func, "__name__", "")
        outputs = tensors_in(args[0] if name == "__setitem__" else result)
        # Reading a size or dtype is not a use; nor is creating a tensor with the shape of another.
        if outputs and not name.startswith("new_") and not name.endswith("_like"):
            self._follow(name, tensors_in((args, kwargs)), outputs)
        return result

    def _follow(self, function: str, arguments: list[Tensor], outputs: list[Tensor]) -> None:
        data = weights = 0
        for tensor in arguments:
            mask = self._mask(tensor)
            if mask & FROM_INPUT:
                data |= mask
            else:
                weights |= mask
            self._note(self.name_of(tensor), function)
        if data:
            # A parameter added to the data (a position) is parallel to the earlier ones; it does not process them.
            origin = FROM_INPUT if function in _ADDITIONS else data
            for bit in _bits(weights):
                self.usage.inputs.setdefault(self.names[bit - 1], origin)
        if data | weights:
            for tensor in outputs:
                self._mark(tensor, data | weights)
        self._add(function, arguments, outputs)

    def _add(self, function: str, arguments: list[Tensor], outputs: list[Tensor]) -> None:
        """Add a function to the flow. A function of parameters only (a cast) counts as part of its user."""
        made_of = [self._origin(tensor) for tensor in arguments]
        names = dict.fromkeys(name for origin in made_of if isinstance(origin, tuple) for name in origin)
        below = dict.fromkeys(origin for origin in made_of if isinstance(origin, int))
        met = bool(below) or None in made_of or (() in made_of and function in _CONTRACTIONS)
        if met and (below or names):
            node = self.usage.flow.add(below, names)
            for tensor in outputs:
                self._come_from(tensor, node)
        elif names:
            for tensor in outputs:
                if id(tensor) not in self.parameters:
                    self.origins[tensor] = tuple(names)
        for tensor in outputs:
            if tensor.grad_fn is not None:
                self.met_data[tensor.grad_fn] = met

    def _come_from(self, tensor: Tensor, node: int) -> None:
        if id(tensor) not in self.parameters:
            self.origins[tensor] = node
        if tensor._base is not None:  # written through a view
            before = self._origin(tensor._base)
            if before != node:
                self._come_from(
                    tensor._base, self.usage.flow.add([node, *([before] if isinstance(before, int) else [])])
                )

    def _mark(self, tensor: Tensor, mask: int) -> None:
        if id(tensor) not in self.parameters:
            self.masks[tensor] = mask
        if tensor._base is not None:  # written through a view, as in `batch[0].copy_(image)`
            self._mark(tensor._base, mask | self._mask(tensor._base))

    def _note(self, name: str | None, function: str) -> None:
        if name is not None and name not in self.usage.first:
            self.usage.first[name] = next(self.clock)
            if function in _CONTRACTIONS:
                self.usage.weights.add(name)
            elif function in _ADDITIONS:
                self.usage.tokens.add(name)

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Record the first call of each module, and uses that functions do not show."""
        modules: dict[int, nn.Module] = {}
        handles = []
        for span in self.index.spans:
            if id(span.module) not in modules and not isinstance(span.module, ScriptModule):
                modules[id(span.module)] = span.module
                handles.append(span.module.register_forward_pre_hook(partial(self._enter, span), with_kwargs=True))
                if not type(span.module).__module__.startswith("torch.nn.modules."):  # those hide nothing
                    handles.append(span.module.register_forward_hook(partial(self._leave, span), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, span: ModuleSpan, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in self.parameters:
                self._know(self.index.aliases[f"{span.name}.{leaf}" if span.name else leaf], parameter)
        if id(module) not in self.usage.calls:
            self.usage.calls[id(module)] = next(self.clock)
        elif id(module) not in self.usage.looped:
            # whether its second call takes the output of the first
            own = [self._mask(parameter) for parameter in module.parameters()]
            if any(self._mask(tensor) & mask for tensor in tensors_in((args, kwargs)) for mask in own):
                self.usage.looped.add(id(module))

    def _leave(
        self, span: ModuleSpan, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: object
    ) -> None:
        """Connect input and output of modules that compute in a `torch.autograd.Function` or in a script."""
        if self.with_gradient and not torch.is_grad_enabled():
            return
        given = tensors_in((args, kwargs))
        passed_on = {id(tensor) for tensor in given}
        hidden = [out for out in tensors_in(result) if self._origin(out) is None and id(out) not in passed_on]
        if hidden:
            names = [name for name in self.index.entries[span.start : span.stop] if name not in self.usage.first]
            self._add("", [*given, *(self.index.parameters[name] for name in names)], hidden)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def record_usage(index: ModelIndex, example_input: object, source: str = "example_input") -> Usage:
    """Run the model once (see `dry_run`) and report how it used its parameters.

    Args:
        index: the model. The forward skips its outermost wrappers (DDP, `torch.compile`).
        example_input: a tensor is the one argument, a tuple or list holds positional arguments, a dict keyword
            arguments. What runs is a copy on the device of the model, and in its floating point dtype.
        source: where the input came from, for the error message.

    Raises:
        PlanError: the forward raised.
    """
    arguments = copied_for(index, example_input)
    watch = UsageMode(index, arguments)
    try:
        with watch.calls():
            dry_run(index.modules[""].module, arguments, watch)
    except Exception as error:
        raise PlanError(_forward_failed(index, error, arguments, source)) from error
    fill_from_calls(index, watch.usage)
    return watch.usage


def fill_from_calls(index: ModelIndex, usage: Usage) -> None:
    """A called module of whose parameters none was seen (FSDP2 runs with others in their place): its call counts."""
    for name, (slots, _) in index.inside.items():
        own = [index.aliases[slot] for slot in slots]
        call = usage.calls.get(id(index.modules[name].module))
        if call is not None and not any(canonical in usage.first for canonical in own):
            usage.first.update(dict.fromkeys(own, call))


def _forward_failed(index: ModelIndex, error: Exception, arguments: object, source: str) -> str:
    shapes = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors_in(arguments)] or [repr(arguments)[:80]]
    said = str(error).strip().splitlines()[:1]
    return (
        f"discover_stages: the forward of {type(index.modules[''].module).__name__}, run once to see the order of its "
        f"layers, raised {': '.join([type(error).__name__, *said])}\n"
        f"  Input: {', '.join(shapes)}, from {source}\n"
        "  Pass an example_input that forward accepts (a tensor is one argument, a tuple positional arguments, a dict "
        "keyword arguments),\n  or none (and example_input_array = None): then stages follow the order of registration"
    )
