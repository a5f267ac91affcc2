"""Sentences under the table at the start about the merged state of a run, which no single policy knows."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.engine.forecast import idle_epochs
from lightning_freeze.engine.frozen_before import partly_frozen
from lightning_freeze.engine.run_view import RunView


def run_remarks(run: RunView) -> list[str]:
    """Remarks about things in this run that a user may not expect."""
    return [*_partly_frozen(run), *_branching(run), *_idle_optimizers(run)]


def _idle_optimizers(run: RunView) -> list[str]:
    """Optimizers with nothing to train in some epochs, such as a GAN's discriminator that is frozen at first."""
    said = []
    for place, epochs in idle_epochs(run).items():
        names = [name for slot in run.slots if slot.optimizer == place for name in slot.names]
        said.append(
            f"Optimizer {place} ({type(run.optimizers[place]).__name__}, {listed(names, 1)} parameters) has nothing to "
            f"train in {spans(epochs)}. Skip its loss there: a backward pass that reaches nothing that trains is an "
            "error. In training_step: if any(p.requires_grad for p in ...)."
        )
    return said


def spans(epochs: Sequence[int]) -> str:
    """`epochs 0 to 3, epoch 7`."""
    starts = [epoch for epoch in epochs if epoch - 1 not in epochs]
    ends = [epoch for epoch in epochs if epoch + 1 not in epochs]
    return ", ".join(f"epoch {a}" if a == b else f"epochs {a} to {b}" for a, b in zip(starts, ends, strict=True))


def _partly_frozen(run: RunView) -> list[str]:
    """Stages of which a part does not train, because it was frozen before the fit."""
    parts = [f"{count} of {total} in '{name}'" for name, count, total in partly_frozen(run.bindings, run.can_train)]
    if not parts:
        return []
    return [
        f"Frozen before the fit, and not trained with their stage: {listed(parts)} parameters. With thaw=True they are "
        "unfrozen too."
    ]


def _branching(run: RunView) -> list[str]:
    """Frozen modules that stay in train mode although `eval_frozen` is on."""
    spans = [run.index.spans[place] for place in sorted(run.branching)]
    names = [span.name or run.index.model_name for span in spans if span.module.training]
    if not names:
        return []
    return [
        f"Frozen, but kept in train mode, because their forward branches on self.training: {listed(names)}. The layers "
        "under them run in eval mode."
    ]


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and the number of the others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
