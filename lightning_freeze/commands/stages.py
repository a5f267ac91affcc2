"""`lightning-freeze stages`: the stages discovered in a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from lightning_freeze.errors import FreezeError, PlanError
from lightning_freeze.preview.user_code import described

HELP = "list the stages discovered in a model"
DESCRIPTION = "List the stages discovered in a model, the head first."


class Input(NamedTuple):
    """One input of a forward pass; a single input may have no name."""

    name: str
    sizes: list[int]
    dtype: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, its input and the form of the output."""
    parser.add_argument("model", help="torchvision:resnet50, timm:NAME, or pkg.mod:factory")
    parser.add_argument(
        "--input",
        metavar="SHAPE",
        help="order by execution: 1x3x224x224, or input_ids=1x128:int64,attention_mask=1x128:int64",
    )
    parser.add_argument("--max-stages", type=int, metavar="N", help="merge neighbours to at most N stages")
    parser.add_argument("--yaml", action="store_true", help="print a block to paste into a config of LightningCLI")


def run(options: argparse.Namespace) -> str:
    """The table of stages.

    Raises:
        FreezeError: the model cannot be made, or fails with this input.
    """
    inputs = None if options.input is None else parse_inputs(options.input)
    model = load_model(options.model)
    from lightning_freeze.engine.context import Context
    from lightning_freeze.report.table import stages_table
    from lightning_freeze.stages.discover import discover_stages
    from lightning_freeze.stages.yaml_block import yaml_block

    example = None if inputs is None else _example(inputs, options.input)
    stages = discover_stages(model, example, options.max_stages)
    if options.yaml:
        return yaml_block(stages)
    bound = Context(model).stages(stages, "stages") if stages else []
    return stages_table(Context(model), bound)


def parse_inputs(written: str) -> list[Input]:
    """Parse `--input`: `1x3x224x224`, `1x128:int64`, or `input_ids=1x128:int64,mask=1x128:bool`.

    Raises:
        PlanError: the text has another form.

    Examples:
        >>> parse_inputs("input_ids=1x128:int64,scale=2")
        [Input(name='input_ids', sizes=[1, 128], dtype='int64'), Input(name='scale', sizes=[2], dtype='float32')]
    """
    parts = written.split(",") if "=" in written else [written.replace(",", "x")]
    return [_parse_input(part.strip(), written) for part in parts]


def _parse_input(part: str, written: str) -> Input:
    name, _, shape = part.rpartition("=")
    sizes, _, dtype = shape.partition(":")
    numbers = [size.strip() for size in sizes.split("x")]
    named = name.isidentifier() or "=" not in written
    if not named or not all(number.isdigit() for number in numbers):
        raise PlanError(
            f"--input {written} is not a shape.\n  Write the sizes with x between them, for example 1x3x224x224, or "
            "each input with its name and dtype: input_ids=1x128:int64,attention_mask=1x128:int64"
        )
    return Input(name, [int(number) for number in numbers], dtype or "float32")


def _example(inputs: list[Input], written: str) -> Any:
    """The tensor, or keyword arguments. Masks are ones, because masking everything gives NaN; all others are zeros."""
    import torch

    made = {}
    for one in inputs:
        dtype = getattr(torch, one.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise PlanError(f"--input {written}: {one.dtype} is not a dtype of torch, such as float32, int64 or bool")
        try:
            made[one.name] = torch.full(one.sizes, "mask" in one.name, dtype=dtype)
        except RuntimeError as error:
            raise PlanError(f"--input {written} cannot be made: {error}\n  A batch of one is enough") from error
    return made if inputs[0].name else made[""]


def load_model(name: str) -> Any:
    """Make a model from `torchvision:NAME`, `timm:NAME` or `pkg.mod:factory`, without pretrained weights.

    Raises:
        PlanError: nothing can be imported under this name, or it does not make a module.
    """
    package, colon, factory = name.partition(":")
    if not colon or not factory:
        raise PlanError(f"model '{name}' is not of the form torchvision:resnet50, timm:NAME or pkg.mod:factory")
    try:
        model = _factory(package, factory)()
    except FreezeError:
        raise
    except Exception as error:  # any exception of a user's factory is a user error here
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
    sys.path.insert(0, "")  # find modules in the current folder, as `python -m` does
    found: Callable[[], Any] = getattr(import_module(package), factory)
    return found
