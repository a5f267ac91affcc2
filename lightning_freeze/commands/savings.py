"""`lightning-freeze savings`: what a training step costs in each stage of a config."""

from __future__ import annotations

import argparse

from lightning_freeze.commands.configs import OVERRIDES, add_config, add_steps_per_epoch, config_of

HELP = "what a step of each stage of a LightningCLI config costs"
DESCRIPTION = f"Run one real training step at each change of the schedule of a LightningCLI config. {OVERRIDES}"
TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config."""
    add_config(parser)
    add_steps_per_epoch(parser)


def run(options: argparse.Namespace) -> str:
    """Operations, memory and time of a step, relative to training everything.

    Raises:
        FreezeError: the run would fail.
    """
    arguments = config_of(options)
    from lightning_freeze.preview.savings import savings

    return savings(**arguments).table()
