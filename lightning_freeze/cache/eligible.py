"""Find the modules that are frozen and deterministic, so that their outputs depend only on their inputs."""

from __future__ import annotations

from torch import nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from lightning_freeze.model.index import ModelIndex

# Given a subclass of Tensor, they use another code path with other bits; so they get plain tensors.
PARTICULAR = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def in_train_mode(module: nn.Module) -> str:
    """What prevents a module from being cached: it draws random numbers or uses batch statistics. Else ""."""
    if isinstance(module, _NormBase):
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            return "normalises with the statistics of the batch"
        if module.training and (isinstance(module, _BatchNorm) or module.track_running_stats):
            return f"is a {type(module).__name__} in train mode, which normalises with the batch and moves statistics"
    rate = getattr(module, "p", 1.0) if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
    draws = isinstance(module, _DropoutNd | nn.RReLU | nn.MultiheadAttention | nn.RNNBase)
    if module.training and draws and (isinstance(module, nn.RReLU) or (isinstance(rate, float | int) and rate > 0)):
        return f"is a {type(module).__name__} in train mode, which draws random numbers"
    return ""


def _unclean(module: nn.Module) -> bool:
    trains = any(parameter is not None and parameter.requires_grad for parameter in module._parameters.values())
    return trains or isinstance(module, ScriptModule) or bool(in_train_mode(module))


class Eligible:
    """The clean modules of a model: frozen, in eval mode and deterministic, with all modules below them, and with
    parameters.

    Attributes:
        names: id of a module -> its name, for all modules.
        modules: the clean modules in pre-order.
        refusals: sentences about frozen modules that are not clean because they are in train mode.
    """

    def __init__(self, index: ModelIndex) -> None:
        spans = index.spans
        self.names = {id(span.module): span.name for span in reversed(spans)}
        unclean = [_unclean(span.module) for span in spans]
        clean = [
            place
            for place, span in enumerate(spans)
            if place and span.stop > span.start and not any(unclean[place : span.end])
        ]
        self.modules: dict[nn.Module, None] = dict.fromkeys(spans[place].module for place in clean)
        self.particular = [span.module for span in spans if isinstance(span.module, PARTICULAR)]
        self.refusals = [
            f"'{span.name}' {why}"
            for place, span in enumerate(spans)
            if (why := in_train_mode(span.module)) and _inside_frozen(index, place)
        ]


def _inside_frozen(index: ModelIndex, place: int) -> bool:
    spans = index.spans
    owner = max((k for k in range(place + 1) if spans[k].end > place and spans[k].stop > spans[k].start), default=0)
    entries = index.entries[spans[owner].start : spans[owner].stop]
    return bool(owner) and not any(index.parameters[name].requires_grad for name in entries)
