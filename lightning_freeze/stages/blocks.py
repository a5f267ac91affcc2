"""Divide a model into units: repeated blocks, and the layers between them.

A model is a tree of modules. From the root down, each module is either *opened*, and its children are considered one
by one, or it is a *unit*. Containers of blocks are opened; repeated blocks, single layers and small modules are units.
The rules are in `_Tree.opens`. They depend on structure and order of use, never on names.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from torch import nn

from lightning_freeze.model.index import ModelIndex
from lightning_freeze.stages.units import Unit, union
from lightning_freeze.stages.usage import Usage

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Number of children of one class that makes any module a container of blocks.
_MANY = 4
# A list of single layers is opened if it holds this share of the model; a deep stem or a small head stays whole.
_SMALL_LIST = 0.02
# A module with this share of the model is opened when it is the only one of its class, and is a container of blocks
# when two of them follow one another in it.
_LARGE = 0.25


@dataclass(eq=False)
class _Node:
    """A module with the parameters that belong to it; a tied parameter belongs to one module only."""

    name: str
    module: nn.Module
    slots: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)
    shapes: frozenset[tuple[str, tuple[int, ...]]] = frozenset()
    unit: Unit = field(init=False)
    place: int = field(init=False, default=0)  # index among the siblings of its class

    @property
    def is_plain_list(self) -> bool:
        """Whether it is one of torch's containers, whose class says nothing about its content."""
        return _class_of(self.module) in _LISTS

    @cached_property
    def alike(self) -> dict[type, list[_Node]]:
        """The children, grouped by class."""
        found: dict[type, list[_Node]] = {}
        for child in self.children:
            found.setdefault(_class_of(child.module), []).append(child)
            child.place = len(found[_class_of(child.module)]) - 1
        return found

    @cached_property
    def blocks(self) -> list[_Node]:
        """The children that consist of more than one layer."""
        return [child for child in self.children if child.children and child.unit.weights > 1]


class _Tree:
    """The modules of a model, and the rules that tell a block from a container of blocks."""

    def __init__(self, index: ModelIndex, usage: Usage) -> None:
        self.index, self.usage = index, usage
        self.bit = {name: 1 << place for place, name in enumerate(index.parameters, start=1)}
        self.shapes = {slot: tuple(index.parameters[name].shape) for slot, name in index.aliases.items()}
        self.matrices = {slot for slot in self.shapes if self._is_matrix(slot)}
        self.classes = Counter(map(_class_of, {id(span.module): span.module for span in index.spans}.values()))
        self.root = self._build()

    def _build(self) -> _Node:
        nodes = {name: _Node(name, span.module) for name, span in self.index.modules.items()}
        homes = set(_homes(self.index, self.usage).values())
        for slot in filter(homes.__contains__, self.index.aliases):
            owner = slot.rpartition(".")[0]
            nodes[owner].own.append(slot)
            for name in _with_ancestors(owner):
                nodes[name].slots.append(slot)
        for name, node in nodes.items():
            node.unit = self._unit(name or self.index.model_name, node.slots)
            node.shapes = frozenset((slot[len(name) :], self.shapes[slot]) for slot in node.slots)
            if name and node.slots:
                nodes[name.rpartition(".")[0]].children.append(node)
        return nodes[""]

    def _is_matrix(self, slot: str) -> bool:
        """Whether a parameter is a layer's weight; not that of a norm, a scale of shape (1, 1, C) or a token."""
        name, shape = self.index.aliases[slot], self.shapes[slot]
        if name in self.usage.weights or name in self.usage.tokens:
            return len(shape) > 1 and name in self.usage.weights
        return len(shape) == 2 or sum(size > 1 for size in shape) > 1

    def _unit(self, label: str, slots: Sequence[str]) -> Unit:
        names = tuple(self.index.aliases[slot] for slot in slots)
        matrices = [self.shapes[slot] for slot in slots if slot in self.matrices]
        bits = union(self.bit[name] for name in names)
        times = [self.usage.first[name] for name in names if name in self.usage.first]
        return Unit(
            labels=(label,),
            names=names,
            size=sum(self.index.parameters[name].numel() for name in names),
            first=min(times, default=math.inf),
            last=max(times, default=math.inf),
            bits=bits,
            inputs=union(self.usage.inputs.get(name, 0) for name in names) & ~bits,
            weights=len(matrices),
            width=(matrices[0][1], matrices[0][0]) if len(matrices) == 1 and len(matrices[0]) == 2 else None,
        )

    def opens(self, node: _Node, parent: _Node) -> bool:
        """Whether a module is a container to open, not a unit."""
        layers = [child for child in node.children if child.unit.weights]
        if node.unit.weights < 2 or not layers or self._is_repeat(node, parent):
            return False
        share = node.unit.size / max(self.root.unit.size, 1)
        if self._has_stack(node, 2 if share >= _LARGE else _MANY):
            return True
        if self._parallel(layers):
            return False
        if node.is_plain_list:
            solid = not all(map(self._is_separable, node.blocks))
            return solid or (share >= _SMALL_LIST and not self._is_written_out(node, parent))
        return share >= _LARGE and self.classes[_class_of(node.module)] == 1 and not self._is_looped(node)

    def _is_repeat(self, node: _Node, parent: _Node) -> bool:
        """Whether the next or previous sibling of its class has mostly the same shapes."""
        alike = parent.alike[_class_of(node.module)]
        if node.is_plain_list or not (isinstance(parent.module, _LISTS) or len(alike) >= _MANY):
            return False
        place = node.place
        return any(
            2 * len(node.shapes & other.shapes) > max(len(node.shapes), len(other.shapes))
            and not self._parallel([node, other])
            for other in (*alike[max(place - 1, 0) : place], *alike[place + 1 : place + 2])
        )

    def _is_looped(self, node: _Node) -> bool:
        """Whether the forward applies a block to its own output, so that one block stands for many."""
        return id(node.module) in self.usage.looped

    def _is_written_out(self, node: _Node, parent: _Node) -> bool:
        """Whether it is one of several `Sequential` of single layers, as in a small U-Net: a block without a class."""
        alike = [child for child in parent.blocks if _class_of(child.module) is nn.Sequential and not child.blocks]
        return node in alike and len(alike) >= _MANY

    def _has_stack(self, node: _Node, enough: int) -> bool:
        """Whether this module, or a container below it, has blocks that follow one another.

        Two blocks of one class in a list are enough. Otherwise there must be `enough` blocks: of one class outside a
        list, of any class in a list.
        """
        blocks = node.blocks
        classes = Counter(_class_of(child.module) for child in blocks)
        many = max(classes.values(), default=0) >= enough
        listed = isinstance(node.module, _LISTS) and len(blocks) > 1 and (len(classes) == 1 or len(blocks) >= enough)
        if self._parallel(blocks):
            if enough == _MANY:  # branches of a block; a module that holds much of the model may be two networks
                return False
        elif (many or listed) and not all(map(self._is_separable, blocks)):
            return True
        return any(self._has_stack(child, enough) for child in blocks if not self._is_repeat(child, node))

    def _is_separable(self, node: _Node) -> bool:
        """Whether it is a convolution in two steps, depthwise and pointwise, which counts as a single layer."""
        shapes = [self.shapes[slot] for slot in node.slots if slot in self.matrices]
        return len(shapes) == 2 and any(len(shape) > 2 and shape[1] == 1 for shape in shapes)

    def _parallel(self, nodes: Sequence[_Node]) -> bool:
        """Whether all modules work side by side. A module that the forward did not call (an expert, the head of
        another task) counts as side by side too.
        """
        units = sorted((node.unit for node in nodes), key=lambda unit: unit.first)
        if not units or units[0].first == math.inf:
            return len(units) > 1 and all(unit.apart(after) for unit, after in pairwise(units))
        return len(units) > 1 and all(after.first == math.inf or unit.apart(after) for unit, after in pairwise(units))

    def units(self, node: _Node) -> Iterator[Unit]:
        """The units under an opened module, in order of registration."""
        for slot in node.own:
            unit = self._unit(slot, [slot])
            yield unit if unit.names[0] in self.usage.weights else replace(unit, weights=0)
        single = isinstance(node.module, _LISTS) and not node.blocks
        for child in node.children:
            if self.opens(child, node):
                yield from self.units(child)
            else:
                known = not child.is_plain_list and self.classes[_class_of(child.module)] > 1
                again = known or self._is_looped(child) or self._is_written_out(child, node)
                repeats = child.unit.weights > 1 and again
                yield replace(child.unit, repeats=repeats, listed=single)


def _class_of(module: nn.Module) -> type:
    """The user's class of a module; FSDP2 replaces it by a subclass."""
    return next(cls for cls in type(module).__mro__ if not cls.__name__.startswith("FSDP"))


def _homes(index: ModelIndex, usage: Usage) -> dict[str, str]:
    """Canonical name -> the name under the module that is called first."""
    calls = {name: usage.calls.get(id(span.module), math.inf) for name, span in index.modules.items()}
    homes: dict[str, str] = {}
    for slot, canonical in index.aliases.items():
        home = homes.setdefault(canonical, slot)
        if calls[slot.rpartition(".")[0]] < calls[home.rpartition(".")[0]]:
            homes[canonical] = slot
    return homes


def _with_ancestors(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def units_of(index: ModelIndex, usage: Usage) -> list[Unit]:
    """The units of a model, in order of registration."""
    tree = _Tree(index, usage)
    return list(tree.units(tree.root))
