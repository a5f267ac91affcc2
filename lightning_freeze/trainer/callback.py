"""The base class of all callbacks of this package: each hook calls the `Session` of its fit."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.engine.policy import Policy
from lightning_freeze.representation import call_of, given, table_of
from lightning_freeze.trainer._lightning import Callback, LightningModule, Trainer
from lightning_freeze.trainer.session import last_session, session_of


class FreezeCallback(Policy, Callback):
    """A policy as a Lightning callback. Subclasses declare what they want; their hooks never change a parameter.

    The first policy that Lightning calls at some moment acts for all policies, so their order in the list of callbacks
    does not matter.
    """

    needs_trainer: bool = False  # True: it needs the hooks of a Trainer, so a Freezer refuses it

    def __repr__(self) -> str:
        return call_of(self)

    def _repr_html_(self) -> str:
        return table_of(self.title, given(self))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            session_of(trainer).check(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        session_of(trainer).start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning skips on_train_epoch_start when a run is resumed within an epoch
        session = session_of(trainer)
        session.reconcile(trainer, pl_module)
        if not session.waits:
            self.begin(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        session_of(trainer).reconcile(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        session = session_of(trainer)
        if session.waits:
            session.see(trainer, pl_module, batch, batch_idx)
            session.reconcile(trainer, pl_module)
            for policy in session.policies:
                policy.begin(trainer)
        elif session.next_step < float("inf") and session.step_is_due(trainer, batch_idx):
            session.reconcile(trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        session_of(trainer).check_loss(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        session_of(trainer).before_update(optimizer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            session_of(trainer).validated(trainer, self)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        session_of(trainer).finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if (session := last_session(trainer)) is not None:
            session.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and (session := last_session(trainer)) is not None:
            session.close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if (session := last_session(trainer)) is not None:
            session.save(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # validate, test and predict also load checkpoints
            session_of(trainer).load(checkpoint)
