"""Hold modules in eval mode: BatchNorm keeps its statistics and Dropout is off.

`requires_grad=False` does neither, and any later call of `.train()` would undo a plain `.eval()`. So `train` of a held
module stays in eval mode, at no cost per step: the instance shadows it with a `functools.partial` of a function in
this file. A held module can still be copied and pickled.
"""

from __future__ import annotations

from functools import partial

from torch import nn

_BEFORE = "_lightning_freeze_training"


def _held_train(module: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a held module: call `train` of its children, but keep the module in eval mode."""
    if mode:
        module.__dict__[_BEFORE] = True
    module.training = False
    for child in module.children():
        child.train(mode)
    return module


def hold(module: nn.Module) -> None:
    """Put one module (without its children) in eval mode, and keep it there until `release`."""
    if _BEFORE not in module.__dict__:
        module.__dict__[_BEFORE] = module.training
        module.__dict__["train"] = partial(_held_train, module)
        _set_training(module, False)


def release(module: nn.Module) -> None:
    """Restore the mode of a held module: the one before `hold`, or train mode if `train()` was called since."""
    if _BEFORE in module.__dict__:
        del module.__dict__["train"]
        _set_training(module, module.__dict__.pop(_BEFORE))


def _set_training(module: nn.Module, training: bool) -> None:
    if type(module).__setattr__ is nn.Module.__setattr__:
        module.__dict__["training"] = training  # faster than `del module.train`, which searches parameters first
    else:
        module.training = training


def is_held(module: nn.Module) -> bool:
    """Whether `hold` keeps the module in eval mode."""
    return _BEFORE in module.__dict__
