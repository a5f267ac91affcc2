"""`lightning-freeze preview`: what the fit of a config would do."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_freeze.commands.configs import OVERRIDES, add_config, add_steps_per_epoch, config_of
from lightning_freeze.errors import PlanError

HELP = "what the fit of a LightningCLI config would do, without training"
DESCRIPTION = f"Simulate the fit of a LightningCLI config. {OVERRIDES}"
TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config and the options for pictures and memory."""
    add_config(parser)
    add_steps_per_epoch(parser)
    parser.add_argument("--meta", action="store_true", help="build the model on the meta device: for any size")
    parser.add_argument("--world", metavar="N,N", help="memory of one process under DDP and FSDP2, such as 1,8,64")
    parser.add_argument("--plot", metavar="FILE", help="write a PNG, SVG or PDF: stages by time, coloured by rate")


def run(options: argparse.Namespace) -> str:
    """The table of the run, its stages over time, and their memory.

    Raises:
        FreezeError: the run would fail, or the picture cannot be written.
    """
    arguments = config_of(options)
    arguments |= {"meta": options.meta, "worlds": _worlds(options)}
    if options.plot is not None:
        _check_folder(options.plot)
    from lightning_freeze.preview.simulation import preview
    from lightning_freeze.preview.text import text
    from lightning_freeze.report import plot

    if options.plot is not None:
        plot.check_path(options.plot, "preview")
    found = preview(**arguments)
    if options.plot is not None:
        plot.draw(found.timeline, options.plot)
    return text(found)


def _worlds(options: argparse.Namespace) -> list[int]:
    if options.world is None:
        return [1, 8, 64] if options.meta else []
    parts = options.world.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise PlanError(f"--world {options.world} must be numbers of processes with commas, for example 1,8,64")
    return [int(part) for part in parts]


def _check_folder(plot: str) -> None:
    folder = Path(plot).parent
    if not folder.is_dir():
        raise PlanError(f"--plot {plot}: the folder {folder} does not exist.\n  mkdir -p {folder}")
