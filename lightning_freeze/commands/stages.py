"""`lightning-freeze stages`: the stages discovered in a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lightning_freeze.errors import FreezeError, PlanError
from lightning_freeze.preview.user_code import described

HELP = "list the stages discovered in a model"
DESCRIPTION = "List the stages discovered in a model, the head first."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how to look at it."""
    parser.add_argument("model", help="torchvision:resnet50, timm:NAME, or pkg.mod:factory")
    parser.add_argument("--input", metavar="SHAPE", help="shape of an input, such as 1x3x224x224: order by execution")
    parser.add_argument("--max-stages", type=int, metavar="N", help="merge neighbours to at most N stages")


def run(options: argparse.Namespace) -> str:
    """The table of stages.

    Raises:
        FreezeError: a model that cannot be made, or an input that it does not take.
    """
    shape = None if options.input is None else _sizes(options.input)
    model = load_model(options.model)
    from lightning_freeze.engine.context import Context
    from lightning_freeze.report.table import stages_table
    from lightning_freeze.stages.discover import discover_stages

    example = None if shape is None else _zeros(options.input, shape)
    stages = discover_stages(model, example, options.max_stages)
    bound = Context(model).stages(stages, "stages") if stages else []
    return stages_table(Context(model), bound)


def _sizes(shape: str) -> list[int]:
    parts = shape.replace(",", "x").split("x")
    if not all(part.strip().isdigit() for part in parts):
        raise PlanError(f"--input {shape} is no shape.\n  Write the sizes with x between them, for example 1x3x224x224")
    return [int(part) for part in parts]


def _zeros(written: str, sizes: list[int]) -> Any:
    import torch

    try:
        return torch.zeros(sizes)
    except RuntimeError as error:
        raise PlanError(f"--input {written} cannot be made: {error}\n  A batch of one is enough") from error


def load_model(name: str) -> Any:
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
        raise PlanError(f"model '{name}' cannot be made: {described(error)}") from error
    from torch import nn

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
