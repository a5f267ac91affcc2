"""The names of a model's parameters, modules and buffers, without the prefixes of wrappers, from one walk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NewType

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_freeze.errors import PlanError
from lightning_freeze.model.searchable import Member, Searchable

# Attribute names under which wrappers keep the wrapped module: unmistakable ones, and common words.
_WRAPPER_ATTRIBUTES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


_WRAPPER_CLASSES = (DistributedDataParallel, DataParallel)


Place = NewType("Place", int)  # of a module in `ModelIndex.spans`


@dataclass(frozen=True)
class ModuleSpan:
    """A module, its range `start:stop` in `ModelIndex.entries`, and the end of its subtree in `spans`."""

    name: str
    module: nn.Module
    start: int
    stop: int
    end: int


def _child_name(parent: nn.Module, prefix: str, attribute: str) -> str:
    """The dotted name of a child; a wrapped module has the name of its wrapper."""
    if attribute in _WRAPPER_ATTRIBUTES or (attribute == "module" and isinstance(parent, _WRAPPER_CLASSES)):
        return prefix
    return f"{prefix}.{attribute}" if prefix else attribute


class ModelIndex:
    """The names of a model: parameters, modules and buffers, without wrapper prefixes.

    Attributes:
        parameters: canonical name -> parameter, in `named_parameters()` order, a tied parameter once.
        aliases: every name of every parameter -> its canonical name.
        entries: canonical names of all parameter attributes in pre-order; a tied parameter appears several times.
        spans: every module in pre-order, with its range in `entries`.
        buffer_places: name of each buffer -> the module that owns it and its attribute name; a shared buffer once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model_name = type(model).__name__
        self.parameters: dict[str, nn.Parameter] = {}
        self.aliases: dict[str, str] = {}
        self.entries: list[str] = []
        self.spans: list[ModuleSpan] = []
        self.buffer_places: dict[str, tuple[nn.Module, str]] = {}
        self._canonical: dict[int, str] = {}
        self._seen_buffers: set[int] = set()
        self._walk(model, "")

    def _walk(self, module: nn.Module, prefix: str) -> None:
        start, place = len(self.entries), len(self.spans)
        self.spans.append(ModuleSpan(prefix, module, start, start, place))
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                self._add_parameter(f"{prefix}.{leaf}" if prefix else leaf, parameter)
        for leaf, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in self._seen_buffers:
                self._seen_buffers.add(id(buffer))
                self.buffer_places[f"{prefix}.{leaf}" if prefix else leaf] = module, leaf
        for attribute, child in module._modules.items():
            if child is not None:
                self._walk(child, _child_name(module, prefix, attribute))
        self.spans[place] = ModuleSpan(prefix, module, start, len(self.entries), len(self.spans))

    def _add_parameter(self, name: str, parameter: nn.Parameter) -> None:
        canonical = self._canonical.setdefault(id(parameter), name)
        self.parameters.setdefault(canonical, parameter)
        self.aliases[name] = canonical
        self.entries.append(canonical)

    def name_of(self, parameter: Tensor) -> str | None:
        """The canonical name of a parameter (the object); None if the model does not have it."""
        return self._canonical.get(id(parameter))

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Name -> buffer, in `named_buffers()` order, a shared buffer once.

        The buffers are looked up at each access, because assigning to a buffer replaces its tensor.
        """
        found = {name: dict(module._buffers.items()).get(leaf) for name, (module, leaf) in self.buffer_places.items()}
        return {name: buffer for name, buffer in found.items() if buffer is not None}

    @property
    def places(self) -> Iterator[tuple[Place, ModuleSpan]]:
        """The place of every module in `spans`."""
        return ((Place(place), span) for place, span in enumerate(self.spans))

    @cached_property
    def modules(self) -> dict[str, ModuleSpan]:
        """Name -> span. A wrapper and the wrapped module share a name; the entry is that of the wrapped module."""
        return {span.name: span for span in self.spans}

    @cached_property
    def inside(self) -> dict[str, tuple[list[str], list[str]]]:
        """Module name -> names of the parameters (tied ones included) and modules directly in it."""
        found: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in self.modules}
        for alias in self.aliases:
            found[alias.rpartition(".")[0]][0].append(alias)
        for name in filter(None, self.modules):
            found[name.rpartition(".")[0]][1].append(name)
        return found

    def under(self, module_name: str) -> list[str]:
        """Canonical names of all parameters under a module."""
        span = self.modules[module_name]
        return self.entries[span.start : span.stop]

    @cached_property
    def leaves(self) -> Mapping[str, tuple[str, ...]]:
        """Every parameter name that patterns can select -> its canonical name."""
        return {alias: (canonical,) for alias, canonical in self.aliases.items()}

    @cached_property
    def containers(self) -> Mapping[str, tuple[str, ...]]:
        """Module name -> parameters under it. The root has no name; the pattern `*` selects it."""
        return {name: tuple(self.under(name)) for name in self.modules if name}

    @cached_property
    def searchable(self) -> Searchable:
        """The parameters, in the form that patterns search."""
        of = f"the {len(self.parameters)} parameters of {self.model_name}"
        modules = [span.module for span in self.spans]
        return Searchable(self.leaves, self.containers, self.members, modules, of)

    def members(self) -> Iterator[Member]:
        """Yield each name of each parameter, with the module that contains it directly."""
        for span in self.spans:
            for leaf, parameter in span.module._parameters.items():
                if parameter is not None:
                    name = f"{span.name}.{leaf}" if span.name else leaf
                    yield Member(name, *self.owner_of(span, leaf), parameter, self.aliases[name])

    def owner_of(self, span: ModuleSpan, leaf: str) -> tuple[nn.Module, str]:
        """The module that owns a tensor, and its attribute name there; torch keeps a parametrized tensor in a child."""
        if not isinstance(span.module, ParametrizationList):
            return span.module, leaf
        parent, _, leaf = span.name.rpartition(".")
        return self.modules[parent.removesuffix("parametrizations").removesuffix(".")].module, leaf


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Total size of these tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_initialized(index: ModelIndex, owner: str) -> None:
    """Refuse a model with uninitialized lazy layers.

    Raises:
        PlanError: a parameter has no shape yet.
    """
    lazy = [name for name, parameter in index.parameters.items() if is_lazy(parameter)]
    if lazy:
        raise PlanError(
            f"{owner}: {len(lazy)} of the {len(index.parameters)} parameters of {index.model_name} have no "
            f"shape yet ({', '.join(lazy[:3])}).\n  Run the model once on a batch before, so that its lazy layers are "
            "built"
        )


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` or `module.compile` was applied to this module itself."""
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None


def tensors_of(index: ModelIndex, names: Iterable[str]) -> dict[str, Tensor]:
    """The model's current parameters and buffers by name."""
    everything: dict[str, Tensor] = {**index.buffers, **index.parameters}
    return {name: everything[name] for name in names if name in everything}


def buffers_of(index: ModelIndex, held: Collection[Place]) -> list[str]:
    """Names of the buffers of held modules, which eval mode must keep unchanged."""
    modules = {id(index.spans[place].module) for place in held}
    return [name for name, (module, _) in index.buffer_places.items() if id(module) in modules]
