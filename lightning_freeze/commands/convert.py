"""`lightning-freeze convert`: a finetuning-scheduler schedule as a YAML block of these callbacks."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "a finetuning-scheduler schedule as a YAML block of these callbacks"
DESCRIPTION = (
    "Print the callbacks that do what a schedule of finetuning-scheduler does, as a block for a LightningCLI config. "
    "What has no counterpart is a comment above it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the schedule and the arguments of FinetuningScheduler that matter."""
    parser.add_argument("schedule", metavar="SCHEDULE.yaml", help="phases 0, 1, 2, ... with params, lr, ...")
    parser.add_argument("--lr", type=float, help="the rate of your optimizer: rates of phases become factors of it")
    parser.add_argument("--base-max-lr", type=float, default=1e-5, help="rate of a phase without one (1e-5)")
    parser.add_argument("--max-depth", type=int, default=-1, metavar="N", help="leave out phases after N")
    parser.add_argument("--epoch-transitions-only", action="store_true", help="no early stopping between phases")
    parser.add_argument("--monitor", default="val_loss", help="the metric of FTSEarlyStopping (val_loss)")
    parser.add_argument("--patience", type=int, default=3, help="its patience (3)")


def run(options: argparse.Namespace) -> str:
    """Convert the schedule and return the YAML block.

    Raises:
        PlanError: the schedule does not exist or cannot be converted.
    """
    import yaml

    from lightning_freeze.migrate import schedule_plan

    stopping: dict[str, Any] = {"monitor": options.monitor, "patience": options.patience}
    plan = schedule_plan(
        options.schedule,
        lr=options.lr,
        base_max_lr=options.base_max_lr,
        max_depth=options.max_depth,
        epoch_transitions_only=options.epoch_transitions_only,
        **stopping,
    )
    entries = [{"class_path": f"lightning_freeze.{name}", "init_args": given} for name, given in plan.callbacks]
    block = yaml.safe_dump({"trainer": {"callbacks": entries}}, sort_keys=False, width=120)
    return "\n".join([*(f"# {remark}" for remark in plan.remarks), block.rstrip()])
