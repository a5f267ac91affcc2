"""Notices that a frozen part of a model is no longer what it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.model.fingerprint import parts_of

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
_SAMPLE, _WHOLE = 16, 1 << 14  # numbers of each tensor looked at in each step; of a buffer up to this size all


class Guard:
    """What the outputs of some modules hang on: parameters, buffers, attributes (`training`, a tensor), and what is
    called: the modules in them, their hooks, and their `forward`.

    A parameter counts as written when its memory or its version has changed and its values have, or when one of a few
    of its numbers has: torch counts no version where `.data` is written.

    Args:
        modules: with all under them.
        tensors: parameters and buffers beside theirs.
        ignore: attributes that are no part of it, as pairs of id of the module and name.
    """

    def __init__(
        self, modules: Iterable[nn.Module], tensors: Iterable[Tensor] = (), ignore: Iterable[tuple[int, str]] = ()
    ) -> None:
        self.watched, self.tensors = list(modules), list(tensors)
        self._modules = list(dict.fromkeys(part for module in self.watched for part in module.modules()))
        own = [*(t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values())), *self.tensors]
        attributes = [value for module in self._modules for value in vars(module).values() if isinstance(value, Tensor)]
        once = {id(t): t for t in [*own, *attributes] if t is not None}
        self._tensors = [part for tensor in once.values() for part in parts_of(tensor)]
        ignored = set(ignore)
        self._places = [
            (vars(module), name)
            for module in self._modules
            for name, value in vars(module).items()
            if (_is_plain(value) or isinstance(value, Tensor)) and (id(module), name) not in ignored
        ]
        self._values = self._attributes()
        self._slots = slots_of(self._modules)
        self._called = self._callables()
        self._versions = self._marks()
        self._views = _by_kind(_sampled(tensor) for tensor in self._tensors)
        self._sampled = _bits(self._views)

    def broken(self) -> str:
        """What has changed since; "" for nothing."""
        if exchanged(self._slots):
            return "a parameter or buffer was exchanged"
        if self._callables() != self._called:
            return "a module, hook or forward was exchanged"
        if not all(map(_equal, self._attributes(), self._values)):
            return "an attribute of a module was changed"
        if self._marks() != self._versions and not self._same_values():
            return "a parameter or buffer was written"
        if not all(map(torch.equal, _bits(self._views), self._sampled)):
            return "a parameter or buffer was written"
        return ""

    def changed_attributes(self) -> set[tuple[int, str]]:
        """Attributes that are others now: id of the module and name."""
        owners = {id(vars(module)): id(module) for module in self._modules}
        return {
            (owners[id(values)], name)
            for (values, name), old in zip(self._places, self._values, strict=True)
            if not _equal(values.get(name), old)
        }

    def _callables(self) -> list[Any]:
        return [(type(one), vars(one).get("forward"), *one._modules.values(), *_hooks(one)) for one in self._modules]

    def _attributes(self) -> list[Any]:
        return [values.get(name) for values, name in self._places]

    def _marks(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), version_of(tensor)) for tensor in self._tensors]

    def _same_values(self) -> bool:
        """DDP writes the buffers in each forward, with the values they have: their version alone says nothing."""
        marks = self._marks()
        for tensor, new, old in zip(self._tensors, marks, self._versions, strict=True):
            if new != old and (new[0] != old[0] or not _whole(tensor)):
                return False
        self._versions = marks
        return True


def version_of(tensor: Tensor) -> int:
    """How often it was written; 0 for one made under inference_mode, of which torch does not count it."""
    return 0 if tensor.is_inference() else tensor._version


def slots_of(modules: Iterable[nn.Module]) -> list[tuple[Any, str, Any]]:
    """Where the parameters and buffers of modules are, and which: for `exchanged`."""
    return [
        (slots, name, value)
        for module in modules
        for slots in (module._parameters, module._buffers)
        for name, value in slots.items()
    ]


def exchanged(slots: Iterable[tuple[Any, str, Any]]) -> bool:
    """Whether another tensor stands in the place of a parameter or buffer now."""
    return any(place.get(name) is not value for place, name, value in slots)


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(one, _PLAIN) for one in value))


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    if not (module._forward_hooks or module._forward_pre_hooks):
        return ()
    return (*module._forward_pre_hooks.values(), *module._forward_hooks.values())


def _whole(tensor: Tensor) -> bool:
    """Whether all of its numbers are looked at in each step."""
    return tensor.numel() <= _WHOLE and not isinstance(tensor, nn.Parameter)


def _sampled(tensor: Tensor) -> Tensor:
    """A view of some of its numbers: of all, where they are few."""
    flat = tensor.detach()
    if not flat.numel():
        return flat
    span = sum((size - 1) * step for size, step in zip(flat.shape, flat.stride(), strict=True)) + 1
    step = 1 if _whole(tensor) else max(1, span // _SAMPLE)
    return flat.as_strided((-(-span // step),), (step,))


def _by_kind(views: Iterable[Tensor]) -> list[list[Tensor]]:
    """Those of one dtype and device together, flat."""
    kinds: dict[Any, list[Tensor]] = {}
    for view in views:
        if view.numel():
            kinds.setdefault((view.dtype, view.device), []).append(view)
    return list(kinds.values())


def _bits(views: Sequence[list[Tensor]]) -> list[Tensor]:
    """The bits of many views."""
    return [torch.cat(same).view(torch.uint8) for same in views]


def _equal(one: Any, other: Any) -> bool:
    if one is other or isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return type(one) is type(other) and bool(one == other)
