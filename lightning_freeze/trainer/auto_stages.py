"""Discover stages in a Trainer: from an example input, the first batch, or the checkpoint of the run."""

from __future__ import annotations

from typing import Any

from lightning_freeze.model.index import ModelIndex
from lightning_freeze.stages.discovery import Discovery, Listed, StagesPending
from lightning_freeze.stages.looked_at import Look
from lightning_freeze.trainer._lightning import LightningModule, Trainer
from lightning_freeze.trainer.looking import look_at
from lightning_freeze.trainer.ranks import from_rank_0


class AutoStages(Discovery):
    """Discovery that waits for the first batch if the model has no `example_input_array`."""

    def __init__(self) -> None:
        super().__init__()
        self._resumed = False

    def look(self, index: ModelIndex) -> Look:
        if self._resumed or getattr(index.modules[""].module, "example_input_array", None) is not None:
            return super().look(index)
        raise StagesPending(
            f"the stages of {index.model_name} are known only at the first batch, because it has no example_input_array"
        )

    def load(self, record: Listed) -> None:
        super().load(record)
        self._resumed = True

    def see(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Discover stages from the first batch. All ranks run it, and all use the result of rank 0."""
        look, why = look_at(trainer, module, batch, batch_idx, thaw=self.thaw)
        self._look, why = from_rank_0((look.plain(), why))
        self.remarks += _remarks(self._look, why)


def _remarks(look: Look, why: str) -> list[str]:
    found = []
    if why:
        found.append(
            f"Stages follow the order of {look.order}, because the first training step could not be read: {why}.\n"
            "  Name the stages, or give the module an example_input_array"
        )
    if look.detached:
        found.append(f"In no stage: {_some(look.detached)}, which training_step calls and detaches from the loss.")
    if look.uncalled:
        found.append(f"Placed beside their neighbours: {_some(look.uncalled)}, which the first batch did not use.")
    return found


def _some(names: list[str]) -> str:
    return f"{names[0]}" + (f" and {len(names) - 1} more parameters" if len(names) > 1 else "")
