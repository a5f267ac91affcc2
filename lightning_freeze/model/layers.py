"""The kinds of layers: the only definition of a normalisation layer, a bias and an embedding.

Layers of other libraries are recognised without importing the library: by class name, and by what their code calls
and holds.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache
from types import CodeType
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.batchnorm import _NormBase as _WithStatistics
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

BatchNorm = _BatchNorm  # torch's, of any dimension, with SyncBatchNorm
KINDS = ("bias", "embedding", "norm")

_NORMS = (
    _WithStatistics,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *filter(None, [getattr(nn, "RMSNorm", None)]),
)
_NO_NORMS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.RNNBase)
# LlamaRMSNorm, BatchNormAct2d, GraphNormalization; not LogNormalOutput, Normalize
_NORM_NAME = re.compile(r"norm(?!al)|normali[sz]ation", re.IGNORECASE)
# Calls of a layer that divides its input by a measure of spread, and calls of a layer that mixes channels.
_NORM_CALLS = {
    "rsqrt",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "norm",
    "vector_norm",
    "normalize",
    "layer_norm",
    "rms_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
}
_MIXING_CALLS = {"linear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm", "einsum", "embedding", "@"}
_RUNNING = ("running_", "moving_")
_EMBEDDING_NAME = re.compile(r"(^|_)embed(ding)?s?$", re.IGNORECASE)
_BIAS_NAME = re.compile(r"bias$", re.IGNORECASE)
_BIAS_VECTOR_NAME = re.compile(r"(^|_)bias(_|$)", re.IGNORECASE)


def normalizes(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer of any kind, from torch, another library or your own code.

    These are: torch's normalisation layers and their subclasses; modules with "norm" in the name of their class or a
    base class whose children have no parameters, unless they mix channels (`NormLinear`); and modules whose
    parameters are all vectors and whose code divides by a variance or a norm, whatever their name.

    Examples:
        >>> normalizes(nn.GroupNorm(1, 2)), normalizes(nn.Linear(2, 2))
        (True, False)
    """
    if isinstance(module, _NORMS):
        return True
    if isinstance(module, _NO_NORMS) or any(True for child in module.children() for _ in child.parameters()):
        return False
    calls = _calls(cast(Hashable, type(module)))
    if not calls.isdisjoint(_MIXING_CALLS):
        return False
    if any(_NORM_NAME.search(cls.__name__) for cls in _own_classes(type(module))):
        return True
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    vectors = bool(own) and all(_is_vector(parameter) and parameter.numel() > 1 for parameter in own)
    return vectors and not module._modules and not calls.isdisjoint(_NORM_CALLS)


def has_statistics(module: nn.Module) -> bool:
    """Whether a normalisation layer has running statistics, which training updates and eval mode uses.

    These are: BatchNorm of any kind, InstanceNorm with `track_running_stats`, and layers of other libraries with such
    buffers and a forward that depends on the mode. torchvision's `FrozenBatchNorm2d` has none: nothing updates its
    buffers.

    Examples:
        >>> has_statistics(nn.BatchNorm1d(2)), has_statistics(nn.InstanceNorm1d(2)), has_statistics(nn.LayerNorm(2))
        (True, False, False)
    """
    if isinstance(module, BatchNorm):
        return True
    if isinstance(module, _InstanceNorm):
        return bool(module.track_running_stats)
    running = any(name.startswith(_RUNNING) for name, buffer in module._buffers.items() if buffer is not None)
    return running and "training" in _calls(cast(Hashable, type(module))) and normalizes(module)


def is_embedding(module: nn.Module) -> bool:
    """Whether a module is an `nn.Embedding`, an `nn.EmbeddingBag` or a subclass of them."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag)


def kinds_of(module: nn.Module, leaf: str, tensor: Tensor | None) -> Iterator[str]:
    """The kinds of a parameter or buffer, as `kind:` in a pattern selects them.

    Args:
        module: the module that contains it directly.
        leaf: its attribute name. `bias`, `in_proj_bias` and `bias_ih_l0` are biases; `pos_embed` is an embedding.
        tensor: its value. A bias has at most one dimension: Swin's `relative_position_bias_table` is not a bias.
    """
    if normalizes(module):
        yield "norm"
    if is_embedding(module) or _EMBEDDING_NAME.search(leaf):
        yield "embedding"
    if _BIAS_NAME.search(leaf) or (_BIAS_VECTOR_NAME.search(leaf) and tensor is not None and _is_vector(tensor)):
        yield "bias"


def _is_vector(tensor: Tensor) -> bool:
    """Whether at most one dimension is larger than 1. An uninitialized parameter is not a vector."""
    return not is_lazy(tensor) and tensor.numel() == max(tensor.shape, default=1)


def _own_classes(cls: type) -> list[type]:
    """A class and its base classes, without those of torch."""
    return [base for base in cls.__mro__ if base is not object and not base.__module__.startswith("torch.nn.")]


@lru_cache(maxsize=4096)
def _calls(cls: Hashable) -> frozenset[str]:
    """Names of all functions and attributes that a class's methods use, and `@` for a matrix product."""
    found: set[str] = set()
    for base in _own_classes(cast(type, cls)):
        for member in vars(base).values():
            code = getattr(_function(member), "__code__", None)
            if isinstance(code, CodeType) and code.co_name != "__init__":
                found.update(_names(code))
    return frozenset(found)


def _function(member: Any) -> Callable[..., Any] | None:
    plain = getattr(member, "__func__", member)  # of a static or class method
    while hasattr(plain, "__wrapped__"):
        plain = plain.__wrapped__
    return plain if callable(plain) else None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    products = ("BINARY_MATRIX_MULTIPLY", "BINARY_OP")
    if any(
        step.opname in products and (step.opname == products[0] or step.argrepr == "@") for step in dis.Bytecode(code)
    ):
        yield "@"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
