"""One training step outside a fit: its batch and its loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_freeze.errors import PlanError


def first_batch(trainer: Any, module: Any) -> Any:
    """The first batch of the training data, after the hooks before and after its transfer to a device.

    Raises:
        PlanError: the loader gives no batch.
    """
    source = trainer.datamodule if trainer.datamodule is not None else module
    loader = source.train_dataloader()
    try:
        batch = next(iter(loader))
    except (StopIteration, TypeError) as error:
        raise PlanError(f"train_dataloader gives no batch: {error}") from error
    for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
        batch = getattr(source, hook)(batch, 0)
    return batch


def loss_of(module: Any, batch: Any) -> Tensor:
    """The loss of a step outside a fit; logged values are discarded."""
    quiet = {name: lambda *_, **__: None for name in ("log", "log_dict")}
    before = {name: vars(module).get(name) for name in quiet}
    vars(module).update(quiet)
    try:
        try:
            out = module.training_step(batch, 0)
        except TypeError as error:
            if "positional argument" not in str(error):
                raise
            out = module.training_step(batch)
    finally:
        for name, own in before.items():
            vars(module).pop(name) if own is None else vars(module).update({name: own})
    loss = out["loss"] if isinstance(out, dict) else out
    if not isinstance(loss, Tensor):
        raise PlanError(
            f"training_step returned {type(loss).__name__}, not a loss.\n"
            "  A step that optimizes by hand cannot be measured"
        )
    return loss
