"""`lightning-freeze merge`: a full checkpoint from a slim one."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_freeze.commands.configs import OVERRIDES, add_config, config_of
from lightning_freeze.errors import PlanError, ResumeError

HELP = "a full checkpoint from one that SlimCheckpoint wrote"
DESCRIPTION = f"Put back the weights that a slim checkpoint leaves out, from the model of its config. {OVERRIDES}"
TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the slim checkpoint, the config and the output file."""
    parser.add_argument("slim", metavar="SLIM", type=Path, help="the slim checkpoint")
    add_config(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the full checkpoint to write")


def run(options: argparse.Namespace) -> str:
    """Merge, and report which tensors were put back.

    Raises:
        FreezeError: the checkpoint cannot be read, or the model has other weights than at the start of the first fit.
    """
    arguments = config_of(options)
    import torch

    from lightning_freeze.model.first_bits import KEY, merge_checkpoint
    from lightning_freeze.preview import config

    try:
        slim = torch.load(options.slim, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ResumeError(f"{options.slim} cannot be read as a checkpoint: {error}") from error
    files = arguments.pop("files")
    with config.undisturbed(files), config.as_user_error(f"config {', '.join(map(str, files))}"):
        built = config.build(files, arguments.get("overrides", ()), model=arguments["model"], data=arguments["data"])
        built.model.configure_model()
    left = len(slim.get(KEY, {}).get("first", ()))
    try:
        torch.save(merge_checkpoint(slim, built.model), options.out)
    except OSError as error:
        raise PlanError(f"--out {options.out} cannot be written: {error}") from error
    return f"{options.out}: a full checkpoint, with {left} tensors of {type(built.model).__name__} as it is built"
