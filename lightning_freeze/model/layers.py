"""What kind of layer a module is: the one definition of a normalisation layer."""

from __future__ import annotations

from torch import nn


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer with running statistics (BatchNorm of any kind, or InstanceNorm
    that tracks them), which training updates and eval mode uses.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    return isinstance(module, nn.modules.instancenorm._InstanceNorm) and bool(module.track_running_stats)
