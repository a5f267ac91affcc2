"""Checkpoints without unchanged tensors, which are checked when a checkpoint is loaded."""

from __future__ import annotations

import warnings

from lightning_freeze.trainer._lightning import LightningModule, Trainer
from lightning_freeze.trainer.callback import FreezeCallback
from lightning_freeze.trainer.slim import begin, slim_files, wrap_load_from_checkpoint


class SlimCheckpoint(FreezeCallback):
    """Leave tensors out of checkpoints that still have their bits from the start of the first fit.

    A checkpoint stores the fingerprints of these tensors. Loading checks the fingerprints and takes the tensors from
    the module as built. These ways of loading work: `fit`, `validate`, `test` and `predict` with `ckpt_path` and this
    callback in the Trainer; `load_from_checkpoint` after this class was imported; `merge_checkpoint` and
    `lightning-freeze merge`, which make a full checkpoint. So build the module with the weights of the first fit; other
    weights raise a `ResumeError`. Every save compares all bits, whether a tensor should be frozen or not. Copies
    elsewhere in a checkpoint, such as averages of frozen weights, are left out too. Optimizer state is stored;
    `FreezeLayers(optimizer_state="drop")` deletes the state of frozen layers.

    Under FSDP and FSDP2, checkpoints stay whole, and a warning says so at the start.

    Raises:
        ResumeError: a checkpoint is loaded into a module with other weights.

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
