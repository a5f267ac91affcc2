"""`lightning-freeze suggest`: which layers, when, at what rate."""

from __future__ import annotations

import argparse
import sys

from lightning_freeze.commands.configs import OVERRIDES, add_config, config_of
from lightning_freeze.errors import PlanError

HELP = "which layers, when, at what rate: measured in short runs on folds of the training data"
DESCRIPTION = (
    "Race ways to fine-tune on copies of the model of a LightningCLI config, and print the candidates with their "
    f"intervals and a config block to use. Ctrl-C prints what is known by then. {OVERRIDES}"
)
TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config, the budget and the metric."""
    add_config(parser)
    parser.add_argument("--budget", type=float, default=10.0, metavar="MINUTES", help="default: 10")
    parser.add_argument("--out", metavar="FILE", help="write the block; a second call goes on from FILE.runs.jsonl")
    parser.add_argument("--monitor", metavar="NAME", help="the metric that judges, as validation_step logs it")
    parser.add_argument("--mode", choices=("min", "max"), help="whether less or more of it is better")
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="parts of the training data (default: 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of folds, order and augmentation")


def run(options: argparse.Namespace) -> str:
    """The stages, the candidates with their intervals, and the block.

    Raises:
        FreezeError: the budget is too small for one candidate, the metric is not logged, or the config is wrong.
    """
    arguments = config_of(options)
    if not options.budget > 0:
        raise PlanError(f"--budget must be more than 0 minutes, got {options.budget:g}")
    if options.folds < 2:
        raise PlanError(f"--folds must be at least 2, got {options.folds}")
    from lightning_freeze.suggest import from_config
    from lightning_freeze.suggest.text import text

    files, overrides = arguments.pop("files"), arguments.pop("overrides")
    found = from_config(
        files, overrides, options.budget, monitor=options.monitor, mode=options.mode, folds=options.folds,
        seed=options.seed, out=options.out, progress=sys.stderr.isatty(), **arguments,
    )  # fmt: skip
    return text(found)
