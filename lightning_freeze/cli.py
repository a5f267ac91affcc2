"""The `lightning-freeze` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from lightning_freeze.engine.context import Context
from lightning_freeze.errors import FreezeError, PlanError
from lightning_freeze.report.table import stages_table
from lightning_freeze.stages.discover import discover_stages


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. 0 on success; 2 on a user error, with the message on stderr and no traceback."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (_preview, _savings):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        print(options.command(options))
    except FreezeError as error:
        print(f"lightning-freeze: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-freeze", description="See what freezing would do.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    stages = commands.add_parser("stages", help="list the stages discovered in a model")
    stages.add_argument("model", help="torchvision:resnet50, timm:NAME, or pkg.mod:factory")
    stages.add_argument("--input", metavar="SHAPE", help="shape of an input, such as 1x3x224x224: order by execution")
    stages.add_argument("--max-stages", type=int, metavar="N", help="merge neighbours to at most N stages")
    stages.set_defaults(command=_stages)
    preview = commands.add_parser(
        "preview",
        help="what the fit of a LightningCLI config would do, without training",
        description="Simulate the fit of a LightningCLI config. Further options, such as --trainer.max_epochs=3, "
        "override those of the config.",
    )
    _add_config(preview)
    preview.add_argument("--plot", metavar="FILE", help="write a PNG, SVG or PDF: stages by time, coloured by rate")
    preview.add_argument("--steps-per-epoch", type=int, metavar="N", help="batches of an epoch: the data is not asked")
    preview.set_defaults(command=_preview)
    savings = commands.add_parser(
        "savings",
        help="what a step of each stage of a LightningCLI config costs",
        description="Run one real training step at each change of the schedule of a LightningCLI config. Further "
        "options, such as --trainer.max_epochs=3, override those of the config.",
    )
    _add_config(savings)
    savings.set_defaults(command=_savings)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", action="append", required=True, help="YAML; a later one wins")
    parser.add_argument("--model", metavar="PKG.MOD:CLASS", help="where a script names it and not the config")
    parser.add_argument("--data", metavar="PKG.MOD:CLASS", help="the same of the data module")


def _stages(options: argparse.Namespace) -> str:
    model = load_model(options.model)
    example = None if options.input is None else _zeros(options.input)
    stages = discover_stages(model, example, options.max_stages)
    bound = Context(model).stages(stages, "stages") if stages else []
    return stages_table(Context(model), bound)


def _preview(options: argparse.Namespace) -> str:
    from lightning_freeze.preview import text as preview_report  # they need what `stages` does not
    from lightning_freeze.preview.simulation import preview
    from lightning_freeze.report import plot  # they need what `stages` does not

    if options.plot is not None:
        plot.check_path(options.plot, "preview")
    if options.steps_per_epoch is not None and options.steps_per_epoch < 1:
        raise PlanError(f"--steps-per-epoch must be at least 1, got {options.steps_per_epoch}")
    found = preview(
        options.config, options.rest, model=options.model, data=options.data, steps_per_epoch=options.steps_per_epoch
    )
    if options.plot is not None:
        plot.draw(found.timeline, options.plot)
    return preview_report.text(found)


def _savings(options: argparse.Namespace) -> str:
    from lightning_freeze.preview.savings import savings

    return savings(options.config, options.rest, model=options.model, data=options.data).table()


def _zeros(shape: str) -> torch.Tensor:
    parts = shape.replace(",", "x").split("x")
    if not all(part.strip().isdigit() for part in parts):
        raise PlanError(f"--input {shape} is no shape.\n  Write the sizes with x between them, for example 1x3x224x224")
    try:
        return torch.zeros([int(part) for part in parts])
    except RuntimeError as error:
        raise PlanError(f"--input {shape} cannot be made: {error}\n  A batch of one is enough") from error


def load_model(name: str) -> nn.Module:
    """Make a model from `torchvision:NAME`, `timm:NAME` or `pkg.mod:factory`, without pretrained weights.

    Raises:
        PlanError: nothing can be imported under that name, or it makes no module.
    """
    package, colon, factory = name.partition(":")
    if not colon or not factory:
        raise PlanError(f"model '{name}' is not of the form torchvision:resnet50, timm:NAME or pkg.mod:factory")
    try:
        model = _factory(package, factory)()
    except FreezeError:
        raise
    except Exception as error:  # whatever a user's factory raises is a user error here
        raise PlanError(f"model '{name}' cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise PlanError(f"model '{name}' makes a {type(model).__name__}, not a torch.nn.Module")
    return model


def _factory(package: str, factory: str) -> Callable[[], Any]:
    if package == "torchvision":
        get_model = import_module("torchvision.models").get_model
        return lambda: get_model(factory, weights=None)
    if package == "timm":
        create_model = import_module("timm").create_model
        return lambda: create_model(factory, pretrained=False)
    sys.path.insert(0, "")  # as `python -m` does: a user's module beside the command
    found: Callable[[], Any] = getattr(import_module(package), factory)
    return found
