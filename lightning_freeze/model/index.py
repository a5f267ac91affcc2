"""One walk over a model: the names of its parameters, modules and buffers, without wrapper prefixes."""

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

# Wrappers that keep what they wrap under an attribute no user would choose, and those that use a common word.
_WRAPPER_ATTRIBUTES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


_WRAPPER_CLASSES = (DistributedDataParallel, DataParallel)


Place = NewType("Place", int)  # of a module in `ModelIndex.spans`


@dataclass(frozen=True)
class ModuleSpan:
    """A module, the range `start:stop` of `ModelIndex.entries` under it, and where in `spans` its subtree ends."""

    name: str
    module: nn.Module
    start: int
    stop: int
    end: int


def _child_name(parent: nn.Module, prefix: str, attribute: str) -> str:
    """The dotted name of a child; a wrapper lends its own name to what it wraps."""
    if attribute in _WRAPPER_ATTRIBUTES or (attribute == "module" and isinstance(parent, _WRAPPER_CLASSES)):
        return prefix
    return f"{prefix}.{attribute}" if prefix else attribute


class ModelIndex:
    """The names of a model: parameters, modules and buffers, without wrapper prefixes.

    Attributes:
        parameters: canonical name -> parameter, in `named_parameters()` order, a tied parameter once.
        aliases: every name of every parameter -> its canonical name.
        entries: canonical name of each parameter slot in pre-order, tied parameters at each place.
        spans: every module in pre-order with the range of `entries` under it.
        buffer_places: name of each buffer -> the module that has it, and its name there; a shared one once.
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
        """The canonical name of a parameter, by identity; None when it is not the model's."""
        return self._canonical.get(id(parameter))

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Name -> buffer, in `named_buffers()` order, a shared buffer once; as they are now, since code that assigns
        to a buffer puts another tensor in its place.
        """
        found = {name: dict(module._buffers.items()).get(leaf) for name, (module, leaf) in self.buffer_places.items()}
        return {name: buffer for name, buffer in found.items() if buffer is not None}

    @property
    def places(self) -> Iterator[tuple[Place, ModuleSpan]]:
        """Every module with its place in `spans`, in pre-order."""
        return ((Place(place), span) for place, span in enumerate(self.spans))

    @cached_property
    def modules(self) -> dict[str, ModuleSpan]:
        """Name -> span; a wrapper and what it wraps share a name, the inner one counts."""
        return {span.name: span for span in self.spans}

    @cached_property
    def inside(self) -> dict[str, tuple[list[str], list[str]]]:
        """Module name -> what is directly in it: parameter names (a tied one at each place) and module names."""
        found: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in self.modules}
        for alias in self.aliases:
            found[alias.rpartition(".")[0]][0].append(alias)
        for name in filter(None, self.modules):
            found[name.rpartition(".")[0]][1].append(name)
        return found

    @cached_property
    def all_names(self) -> dict[str, list[str]]:
        """Canonical name -> all names of the parameter; a tied one has several."""
        found: dict[str, list[str]] = {}
        for alias, canonical in self.aliases.items():
            found.setdefault(canonical, []).append(alias)
        return found

    def under(self, module_name: str) -> list[str]:
        """Canonical names of all parameters under a module."""
        span = self.modules[module_name]
        return self.entries[span.start : span.stop]

    @cached_property
    def leaves(self) -> Mapping[str, tuple[str, ...]]:
        """What patterns select from: every parameter name -> the parameter it names."""
        return {alias: (canonical,) for alias, canonical in self.aliases.items()}

    @cached_property
    def containers(self) -> Mapping[str, tuple[str, ...]]:
        """Module name -> parameters under it; the root has no name and is reached with `*`."""
        return {name: tuple(self.under(name)) for name in self.modules if name}

    @cached_property
    def searchable(self) -> Searchable:
        """The parameters, as patterns search them."""
        of = f"the {len(self.parameters)} parameters of {self.model_name}"
        modules = [span.module for span in self.spans]
        return Searchable(self.leaves, self.containers, self.members, modules, of)

    def members(self) -> Iterator[Member]:
        """Each name of each parameter, with the module that it lies in directly."""
        for span in self.spans:
            for leaf, parameter in span.module._parameters.items():
                if parameter is not None:
                    name = f"{span.name}.{leaf}" if span.name else leaf
                    yield Member(name, *self.owner_of(span, leaf), parameter, self.aliases[name])

    def owner_of(self, span: ModuleSpan, leaf: str) -> tuple[nn.Module, str]:
        """The module that a tensor belongs to and its name there: torch keeps a parametrized tensor in a child."""
        if not isinstance(span.module, ParametrizationList):
            return span.module, leaf
        parent, _, leaf = span.name.rpartition(".")
        return self.modules[parent.removesuffix("parametrizations").removesuffix(".")].module, leaf


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that the elements of these tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_initialized(index: ModelIndex, owner: str) -> None:
    """Refuse a model with lazy layers that have not seen a batch.

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
    """Whether `torch.compile` or `module.compile` was applied to this very module."""
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None


def tensors_of(index: ModelIndex, names: Iterable[str]) -> dict[str, Tensor]:
    """Name -> parameter or buffer, as the model has it now."""
    everything: dict[str, Tensor] = {**index.buffers, **index.parameters}
    return {name: everything[name] for name in names if name in everything}


def buffers_of(index: ModelIndex, held: Collection[Place]) -> list[str]:
    """Names of the buffers that belong to held modules: what eval mode has to keep as it is."""
    modules = {id(index.spans[place].module) for place in held}
    return [name for name, (module, _) in index.buffer_places.items() if id(module) in modules]
