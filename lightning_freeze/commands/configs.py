"""Shared options of the commands that read a LightningCLI config."""

from __future__ import annotations

import argparse
from typing import Any

from lightning_freeze.errors import PlanError
from lightning_freeze.preview.config_files import read

OVERRIDES = "Further options, such as --trainer.max_epochs=3, override those of the config."


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the options for a config, or for a script that builds model and data."""
    parser.add_argument("--config", metavar="FILE", action="append", required=True, help="YAML; a later one wins")
    parser.add_argument("--model", metavar="PKG.MOD:CLASS", help="where a script names it and not the config")
    parser.add_argument("--data", metavar="PKG.MOD:CLASS", help="the same of the data module")


def add_steps_per_epoch(parser: argparse.ArgumentParser) -> None:
    """Add the option for the length of an epoch, for data of unknown length."""
    parser.add_argument("--steps-per-epoch", type=int, metavar="N", help="batches of an epoch, instead of len(loader)")


def config_of(options: argparse.Namespace) -> dict[str, Any]:
    """Check the arguments of `preview` and similar commands without importing torch.

    Raises:
        PlanError: a file cannot be read, or an epoch would have no steps.
    """
    steps = getattr(options, "steps_per_epoch", None)
    if steps is not None and steps < 1:
        raise PlanError(f"--steps-per-epoch must be at least 1, got {steps}")
    for file in options.config:
        read(file)
    found = {"files": options.config, "overrides": options.overrides, "model": options.model, "data": options.data}
    return found if steps is None else found | {"steps_per_epoch": steps}
