"""Patterns to parameter names: a selection is a plain list of names, in `named_parameters()` order.

`ModelIndex` is one walk over a model; everything else in the package asks it for names. Names never
contain the prefixes that wrappers add, and a tied parameter has one name and answers to all of them.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lightning_freeze.errors import PatternError

Patterns = str | Sequence[str]

_GLOB = re.compile(r"[*?\[]")
# Wrappers that keep what they wrap under an attribute no user would choose, and those that use a common word.
_WRAPPER_ATTRIBUTES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPER_CLASSES = (DistributedDataParallel, DataParallel)


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


def as_patterns(patterns: Patterns) -> list[str]:
    """One string or a list of strings, as a list.

    Raises:
        PatternError: anything else.
    """
    found = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Sequence) else None
    if found is None or not all(isinstance(pattern, str) and pattern for pattern in found):
        raise PatternError(f"patterns must be a string or a list of strings, got {patterns!r}")
    return found


def resolve(
    patterns: Patterns,
    leaves: Mapping[str, Sequence[str]],
    containers: Mapping[str, Sequence[str]],
    owner: str,
    of: str,
) -> set[str]:
    """Apply a list of patterns to named things and return the set of what they select.

    Args:
        patterns: one pattern or several, applied in order (see `select`).
        leaves: name -> what it stands for; regular expressions and globs see these names.
        containers: name -> what lies under it; globs and plain names see these too.
        owner: who asks, for the error message (`GradualUnfreeze stage 'late'`).
        of: what is searched, for the error message (`the 62 parameters of LitResNet`).

    Raises:
        PatternError: a pattern matches nothing, is no regular expression, or begins the list with `!`.
    """
    chosen: set[str] = set()
    for position, pattern in enumerate(as_patterns(patterns)):
        negated = pattern.startswith("!")
        if negated and position == 0:
            raise PatternError(
                f"{owner}: pattern '{pattern}' takes away from the patterns before it, but none is.\n"
                f"  Put what it takes away from first, for example ['*', '{pattern}']"
            )
        found = set(_match(pattern.removeprefix("!"), leaves, containers, owner))
        if not found:
            raise PatternError(_nothing_matched(pattern, leaves, containers, owner, of))
        chosen = chosen - found if negated else chosen | found
    return chosen


def _match(
    pattern: str, leaves: Mapping[str, Sequence[str]], containers: Mapping[str, Sequence[str]], owner: str
) -> Iterator[str]:
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise PatternError(f"{owner}: pattern '{pattern}' is no regular expression: {error}") from None
        for name, targets in leaves.items():
            if expression.fullmatch(name):
                yield from targets
        return
    yield from leaves.get(pattern, ())
    yield from containers.get(pattern, ())
    if _GLOB.search(pattern):
        matches = re.compile(fnmatch.translate(pattern)).match
        for names in (leaves, containers):
            for name, targets in names.items():
                if matches(name):
                    yield from targets


def _nothing_matched(
    pattern: str,
    leaves: Mapping[str, Sequence[str]],
    containers: Mapping[str, Sequence[str]],
    owner: str,
    of: str,
) -> str:
    plain = pattern.removeprefix("!").removeprefix("re:")
    names = list(dict.fromkeys([*containers, *leaves]))
    lines = [f"{owner}: pattern '{pattern}' matches none of {of}."]
    if plain in containers:
        lines.append(f"  '{plain}' is a module without any.")
    closest = [name for name in names if name.endswith(f".{plain}")][:3]  # `fc`, and it is `model.fc`
    closest = closest or [name for name in difflib.get_close_matches(plain, names, n=3, cutoff=0.5) if name != plain]
    if not closest and "." in plain:  # the parent is right and the child is not: show the children
        parent = plain.rpartition(".")[0]
        closest = [name for name in names if name.rpartition(".")[0] == parent][:5]
    closest = closest or [name for name in containers if "." not in name][:5] or names[:5]
    if closest:
        lines.append(f"  Closest: {', '.join(closest)}")
    return "\n".join(lines)


def select_names(index: ModelIndex, patterns: Patterns, owner: str = "select") -> list[str]:
    """`select` on an index that is already there; `owner` opens the error message."""
    of = f"the {len(index.parameters)} parameters of {index.model_name}"
    chosen = resolve(patterns, index.leaves, index.containers, owner, of)
    return [name for name in index.parameters if name in chosen]


def select(model: nn.Module, patterns: Patterns) -> list[str]:
    r"""Names of the parameters that the patterns select, in `named_parameters()` order.

    Args:
        model: any module. Prefixes of wrappers (`torch.compile`, DDP, FSDP) are not part of a name.
        patterns: a pattern or a list of them, applied in order. `model.layer4` is a module with all
            parameters under it, `model.fc.weight` one parameter, `model.layer?.*.bn*` a shell glob over
            parameter and module names (`*` crosses dots), `re:...` a regular expression (full match over
            parameter names), and `!...` takes away from what the patterns before it selected.

    Raises:
        PatternError: a pattern matches nothing; the message names the closest parameters and modules.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
        >>> select(model, ["*", "!1"])
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> select(model, r"re:\d\.bias")
        ['0.bias', '1.bias', '2.bias']
    """
    return select_names(ModelIndex(model), patterns)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer with running statistics (BatchNorm of any kind, or InstanceNorm
    that tracks them), which training updates and eval mode uses.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    return isinstance(module, nn.modules.instancenorm._InstanceNorm) and bool(module.track_running_stats)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that the elements of these tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
