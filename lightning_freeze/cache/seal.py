"""Detect changes of a frozen module exactly, by version and identity, in some microseconds.

A write through `.data` does not raise a version. Such writes are looked for between epochs, in some numbers of each
tensor.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.model.fingerprint import parts_of

_OWN = frozenset(vars(nn.Module()))  # attributes of every module
_SLOTS = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
CONTAINERS = (list, dict, set, deque, OrderedDict)
_PLAIN = (bool, int, float, str, bytes, complex, type(None), torch.dtype, torch.device)
_SAMPLE, _WHOLE, _DEPTH, _WIDTH = 16, 1 << 14, 3, 200


def picture(value: Any, depth: int = _DEPTH) -> Any:
    """A picture of a value for comparison with a later one; containers and objects by content."""
    if isinstance(value, _PLAIN):
        return type(value), value if value == value else repr(value)
    if isinstance(value, Tensor):
        return id(value), version_of(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
        return value.tobytes()
    if depth and isinstance(value, tuple | list | set | frozenset | deque):
        return type(value), len(value), *[picture(one, depth - 1) for one, _ in zip(value, range(_WIDTH), strict=False)]
    if depth and isinstance(value, dict):
        return len(value), *[(key, picture(one, depth - 1)) for key, one in [*value.items()][-_WIDTH:]]
    if depth and isinstance(value, nn.Module):
        return id(value), *[(name, picture(one, depth - 1)) for name, one in own(value) if _counts(one)]
    if depth and hasattr(value, "__dict__") and not callable(value) and not isinstance(value, type(torch)):
        return id(value), *[(name, picture(one, depth - 1)) for name, one in [*vars(value).items()][:_WIDTH]]
    return id(value)


def _counts(value: Any) -> bool:
    return isinstance(value, (*_PLAIN, *CONTAINERS))


def own(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of a module beyond those of `nn.Module`."""
    return [(name, value) for name, value in vars(module).items() if name not in _OWN and name != "forward"]


def version_of(tensor: Tensor) -> int:
    """The version of a tensor; 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version


def user_classes(modules: Iterable[nn.Module]) -> list[type]:
    """The classes of modules outside torch: class attributes apply to all modules of a class."""
    classes = {cls: None for kind in {type(module) for module in modules} for cls in kind.__mro__}
    return [cls for cls in classes if cls is not object and not cls.__module__.startswith("torch.")]


class Seal:
    """The state of a module and its children at one time.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> seal = Seal(layer)
        >>> seal.holds()
        True
        >>> _ = layer.weight.data.add_(1), layer.bias.detach().zero_()
        >>> seal.holds()
        False
    """

    def __init__(self, module: nn.Module) -> None:
        self.modules = list(module.modules())
        self._types = [type(one) for one in self.modules]
        live = chain.from_iterable((vars(one), *(vars(one)[name] for name in _SLOTS)) for one in self.modules)
        self._live: list[Any] = [*live, *map(vars, user_classes(self.modules))]
        self._copies = [dict(one) for one in self._live]
        nested = [value for one in self.modules for _, value in own(one) if _is_nested(value)]
        self._nested = list({id(value): value for value in nested}.values())
        self._pictures = [picture(value) for value in self._nested]
        values = chain.from_iterable(
            (*one._parameters.values(), *one._buffers.values(), *vars(one).values()) for one in self.modules
        )
        self.tensors = list({id(value): value for value in values if isinstance(value, Tensor)}.values())
        self._dense = [tensor for tensor in self.tensors if _is_counted(tensor)]
        self._versions, self._places = self._marks()
        self._others = [part for t in self.tensors if not _is_counted(t) for part in parts_of(t)]
        self._kept = [part.clone() for part in self._others]
        self._buffers = {
            place: tensor.detach().clone()
            for place, tensor in enumerate(self._dense)
            if not isinstance(tensor, nn.Parameter) and tensor.numel() <= _WHOLE
        }
        self._views = [_sampled(tensor) for tensor in self._dense]
        self._samples = _bits(self._views)

    def holds(self) -> bool:
        """Whether nothing has changed, by versions and identities."""
        if self._types != [one.__class__ for one in self.modules]:
            return False
        if not _same(self._live, self._copies):
            return False
        if self._nested and [picture(value) for value in self._nested] != self._pictures:
            return False
        versions, places = self._marks()
        if places != self._places or (versions != self._versions and not self._same_buffers(versions)):
            return False
        return all(map(torch.equal, self._others, self._kept)) if self._others else True

    def dead(self) -> bool:
        """Whether a tensor was written, so that this state cannot come back."""
        return any(tensor._version > old for tensor, old in zip(self._dense, self._versions, strict=True))

    def same_numbers(self) -> bool:
        """Whether a sample of numbers of each tensor is unchanged."""
        return self._samples == _bits(self._views)

    def _marks(self) -> tuple[list[int], list[int]]:
        return [t._version for t in self._dense], [t.data_ptr() for t in self._dense]

    def _same_buffers(self, versions: list[int]) -> bool:
        """Whether buffers have equal values: DDP rewrites them in each forward."""
        for place, (new, old) in enumerate(zip(versions, self._versions, strict=True)):
            if new != old and not (place in self._buffers and torch.equal(self._dense[place], self._buffers[place])):
                return False
        self._versions = versions
        return True


def _is_counted(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_inference()


def _is_nested(value: Any) -> bool:
    if isinstance(value, Tensor | nn.Module | type) or callable(value):
        return False
    return bool(isinstance(value, CONTAINERS) or hasattr(value, "__dict__") or hasattr(value, "tobytes"))


def _same(live: list[Any], copies: list[dict[str, Any]]) -> bool:
    try:
        return bool(live == copies)  # compares by identity first, in C, and by value only if objects differ
    except (RuntimeError, ValueError, TypeError):  # a tensor or an array was exchanged for another
        return False


def _sampled(tensor: Tensor) -> Tensor:
    """A view of a sample of its numbers, or of all if there are few."""
    flat = tensor.detach()
    if not flat.numel():
        return flat
    span = sum((size - 1) * step for size, step in zip(flat.shape, flat.stride(), strict=True)) + 1
    step = 1 if tensor.numel() <= _SAMPLE else max(1, span // _SAMPLE)
    return flat.as_strided((-(-span // step),), (step,))


def _bits(views: Iterable[Tensor]) -> list[bytes]:
    return [view.clone().view(torch.uint8).cpu().numpy().tobytes() if view.numel() else b"" for view in views]
