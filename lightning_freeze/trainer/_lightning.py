"""The one place that chooses between `lightning.pytorch` and `pytorch_lightning`.

Both can be installed, and a Trainer of either must accept our callbacks (LightningCLI checks the class). If the
user has imported just one of them by now, that one it is; otherwise `Callback` descends from every one installed.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _packages() -> list[Any]:
    imported = [name for name in PACKAGES if name in sys.modules]
    found = []
    for name in imported if len(imported) == 1 else PACKAGES:
        with suppress(ModuleNotFoundError):
            found.append(import_module(name))
    if not found:
        raise ImportError("lightning_freeze needs PyTorch Lightning.\n  pip install lightning")
    return found


Callback = type("Callback", tuple(package.Callback for package in _packages()), {"__module__": __name__})
LightningModule = Trainer = Any  # for annotations only; type checkers read _lightning.pyi

__all__ = ["PACKAGES", "Callback", "LightningModule", "Trainer"]
