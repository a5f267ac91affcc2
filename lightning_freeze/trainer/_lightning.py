"""The only import of `lightning.pytorch` or `pytorch_lightning`.

If both are installed, the Trainer and LightningCLI of either must accept our callbacks, whichever was imported first.
So `Callback` is a subclass of both.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _packages() -> list[Any]:
    messages = import_module("lightning_utilities.core.rank_zero")
    imported, log = any(name in sys.modules for name in PACKAGES), getattr(messages, "log", None)
    found = []
    for name in PACKAGES:
        with suppress(ModuleNotFoundError):
            found.append(import_module(name))
    if imported:  # importing a package redirects messages of both to its own logger; the user's package keeps them
        messages.log = log
    if not found:
        raise ImportError("lightning_freeze needs PyTorch Lightning.\n  pip install lightning")
    return found


Callback = type("Callback", tuple(package.Callback for package in _packages()), {"__module__": __name__})
LightningModule = Trainer = Any  # for annotations; type checkers read _lightning.pyi

__all__ = ["PACKAGES", "Callback", "LightningModule", "Trainer"]
