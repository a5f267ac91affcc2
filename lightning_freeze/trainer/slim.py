"""Write and load slim checkpoints in a Trainer.

Methods of the strategy are shadowed on the instance: every checkpoint is saved through `save_checkpoint` (callbacks are
not told of one with weights only) and loaded through `load_checkpoint`. `LightningModule.load_from_checkpoint` has no
Trainer, so Lightning's function behind it is wrapped once.
"""

from __future__ import annotations

import sys
from functools import partial, wraps
from importlib import import_module
from typing import Any

from lightning_freeze.model.first_bits import KEY, FirstBits, fill, first_bits, slim
from lightning_freeze.trainer._lightning import PACKAGES

_ATTRIBUTE = "_lightning_freeze_slim"  # of the strategy
_WRAPPED = "_lightning_freeze_wrapped"  # of Lightning's function


class SlimFiles:
    """The fingerprints from the start of the first fit, for one strategy."""

    def __init__(self) -> None:
        self.first: FirstBits | None = None
        self.loaded = False  # from a checkpoint, in this fit


def slim_files(strategy: Any) -> SlimFiles:
    """Let a strategy write and read slim checkpoints. A second call does nothing."""
    files: SlimFiles | None = getattr(strategy, _ATTRIBUTE, None)
    if files is None:
        files = SlimFiles()
        setattr(strategy, _ATTRIBUTE, files)
        strategy.save_checkpoint = partial(_save, strategy, files)
        strategy.load_checkpoint = partial(_load, strategy, files)
    return files


def begin(strategy: Any, files: SlimFiles) -> None:
    """At the start of a fit, take the current fingerprints, unless a checkpoint has provided them."""
    if not files.loaded and strategy.is_global_zero:
        files.first = first_bits(strategy.lightning_module_state_dict())
    files.loaded = False


def _save(strategy: Any, files: SlimFiles, checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    if files.first is not None and strategy.is_global_zero:
        checkpoint = slim(checkpoint, files.first)
    type(strategy).save_checkpoint(strategy, checkpoint, *args, **kwargs)


def _load(strategy: Any, files: SlimFiles, *args: Any, **kwargs: Any) -> dict[str, Any]:
    checkpoint: dict[str, Any] = type(strategy).load_checkpoint(strategy, *args, **kwargs)
    module = strategy.lightning_module
    state = module.state_dict()
    known = {name: tuple(bits) for name, bits in checkpoint.get(KEY, {}).get("first", {}).items()}
    files.first, files.loaded = known if KEY in checkpoint else first_bits(state), True
    fill(checkpoint, state, type(module).__name__)
    return checkpoint


def wrap_load_from_checkpoint() -> None:
    """Let `LightningModule.load_from_checkpoint` accept slim checkpoints from now on, in this process."""
    for package in PACKAGES:
        if package in sys.modules:
            saving: Any = import_module(f"{package}.core.saving")
            if not hasattr(saving._load_state, _WRAPPED):
                saving._load_state = _filling(saving._load_state)


def _filling(original: Any) -> Any:
    @wraps(original)
    def load_state(cls: Any, checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if KEY not in checkpoint or not hasattr(cls, "load_state_dict"):
            return original(cls, checkpoint, *args, **kwargs)
        own = vars(cls).get("on_load_checkpoint")
        hook = cls.on_load_checkpoint

        def fill_first(module: Any, loaded: dict[str, Any]) -> None:
            fill(loaded, module.state_dict(), type(module).__name__)
            hook(module, loaded)

        cls.on_load_checkpoint = fill_first  # Lightning calls this first on the module it has built
        try:
            return original(cls, checkpoint, *args, **kwargs)
        finally:
            if own is None:
                del cls.on_load_checkpoint
            else:
                cls.on_load_checkpoint = own

    setattr(load_state, _WRAPPED, True)
    return load_state
