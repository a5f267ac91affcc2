"""Checkpoints of what moved: frozen tensors are left out, and checked when they are loaded."""

from __future__ import annotations

import warnings

from lightning_freeze.trainer._lightning import LightningModule, Trainer
from lightning_freeze.trainer.callback import FreezeCallback
from lightning_freeze.trainer.slim import begin, slim_files, wrap_load_from_checkpoint


class SlimCheckpoint(FreezeCallback):
    """Leave out of each checkpoint the tensors that have the bits they had when the first fit began.

    Their fingerprints are kept. Whatever loads the checkpoint takes them from the module as it is built, after checking
    them: `fit`, `validate`, `test` and `predict` with `ckpt_path` and this callback in the Trainer,
    `load_from_checkpoint` once this class has been imported, and `merge_checkpoint` or `lightning-freeze merge`,
    which make a full checkpoint. So build the module with the weights that the first fit began with; other weights
    are a `ResumeError`. All bits are compared at each save, whether a tensor is meant to be frozen or not. Copies
    elsewhere in a checkpoint, such as averages of frozen weights, are left out as well. Optimizer state is not:
    `FreezeLayers(optimizer_state="drop")` keeps that of layers that have been frozen out of the file.

    Under FSDP and FSDP2 checkpoints stay whole, with a warning at the start.

    Raises:
        ResumeError: when a checkpoint is loaded into a module with other weights.

    Examples:
        >>> SlimCheckpoint().title
        'SlimCheckpoint'
    """

    observes_only = True
    needs_trainer = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.strategy.restore_checkpoint_after_setup:
            slim_files(trainer.strategy)
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.strategy.restore_checkpoint_after_setup:
            begin(trainer.strategy, slim_files(trainer.strategy))
        elif trainer.is_global_zero:
            warnings.warn(
                f"{self.title}: under {type(trainer.strategy).__name__} checkpoints stay whole, because each rank "
                "writes its own part of every tensor.\n  Leave it out, or train with strategy='ddp'",
                stacklevel=2,
            )
        super().on_fit_start(trainer, pl_module)


wrap_load_from_checkpoint()
