"""Check during training that frozen parameters do not move and trainable ones can."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze import arguments
from lightning_freeze.auditing.violations import Violation, message
from lightning_freeze.auditing.watcher import Watcher, differing
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Change
from lightning_freeze.errors import FreezeViolation
from lightning_freeze.model.class_names import is_named
from lightning_freeze.model.fingerprint import select_tensors
from lightning_freeze.model.patterns import as_patterns
from lightning_freeze.trainer._lightning import LightningModule, Trainer
from lightning_freeze.trainer.callback import FreezeCallback
from lightning_freeze.trainer.session import session_of

# Callbacks of Lightning that write parameters and buffers of the whole model, by class name.
_WRITERS = ("StochasticWeightAveraging", "WeightAveraging", "ModelPruning")


class FreezeAudit(FreezeCallback):
    """Check that frozen parameters and buffers are bit-identical, and check optimizer groups, modes and ranks.

    The audit runs at the end of every n-th epoch and of the run. Every frozen parameter, and every buffer of a module
    held in eval mode, must have the bits that it had when it was frozen. Every trainable parameter must be in exactly
    one optimizer group. Frozen parameters must not be in a group or require a gradient. Held modules must be in eval
    mode. Under DDP, all ranks must have the same bits.

    A trainable parameter without a gradient so far is not a violation; a warning names it once.

    A violation names the tensor, its stage, when it was last correct, and the likely cause.

    Args:
        every_n_epochs: audit at the end of every n-th epoch. The end of training is always audited.
        on_violation: "raise" a FreezeViolation on every rank, or "warn" and take the new values as the reference.
        ignore: patterns of parameters and buffers that are written by design, such as a momentum teacher that your
            code averages; these patterns match names of buffers too.
        verbose: print the time of the audits at the end, on rank 0.

    Raises:
        PlanError: the arguments cannot work.
        FreezeViolation: during training, something frozen has moved, or something trainable cannot train.

    Examples:
        >>> FreezeAudit(every_n_epochs=5, on_violation="warn").every_n_epochs
        5
    """

    needs_trainer = True

    def __init__(
        self,
        every_n_epochs: int = 1,
        on_violation: Literal["raise", "warn"] = "raise",
        ignore: str | list[str] | None = None,
        verbose: bool = True,
    ) -> None:
        arguments.check_positive(every_n_epochs, "every_n_epochs", self.title)
        arguments.check_choice(on_violation, ("raise", "warn"), "on_violation", self.title)
        as_patterns([] if ignore is None else ignore, f"{self.title} ignore")
        self.every_n_epochs = every_n_epochs
        self.on_violation = on_violation
        self.ignore = ignore
        self.verbose = verbose
        self.seconds = 0.0
        self.audits = 0
        self._watcher: Watcher | None = None
        self._ignored: frozenset[str] = frozenset()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_watcher": None}  # the watcher belongs to the model of one fit

    observes_only = True

    def bind(self, context: Context) -> Binding:
        patterns = as_patterns(self.ignore) if self.ignore is not None else []
        self._ignored = frozenset(select_tensors(context.index, patterns, f"{self.title} ignore"))
        return Binding()

    # ---- start and changes

    def begin(self, trainer: Trainer) -> None:
        self.seconds, self.audits = 0.0, 0
        started = time.perf_counter()
        # with every strategy, the weights of a checkpoint are loaded by now
        self._watcher = Watcher(session_of(trainer).view, self._ignored)
        self.seconds += time.perf_counter() - started

    def changed(self, done: Change) -> None:
        if self._watcher is not None:
            started = time.perf_counter()
            self._watcher.follow(done)
            self.seconds += time.perf_counter() - started

    # ---- audits

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._audit(trainer, f"the end of epoch {trainer.current_epoch}, step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._audit(trainer, f"the end of training, step {trainer.global_step}")
        if self._watcher is not None and self.verbose and trainer.is_global_zero:
            frozen = len(self._watcher.hashes)
            print(
                f"{self.title}: {self.audits} audits, {frozen} frozen tensors at the last, {self.seconds:.2f} s in all"
            )
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()
        super().on_exception(trainer, pl_module, exception)

    def _stop(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _audit(self, trainer: Trainer, when: str) -> None:
        if self._watcher is None:
            return
        started = time.perf_counter()
        violations = self._watcher.audit(trainer.strategy.optimizers, when, _writers(trainer))
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            replicas = isinstance(trainer.strategy.model, DistributedDataParallel)
            violations = _of_all_ranks(violations, self._watcher, replicas)
        self._report_unused(trainer, when)
        self.audits += 1
        self.seconds += time.perf_counter() - started
        if not violations:
            return
        text = f"{self.title}: {message(violations, when)}"
        if self.on_violation == "raise":
            raise FreezeViolation(
                f"{text}\n  What is written by design, as a momentum teacher is, belongs into ignore=[...]; "
                "on_violation='warn' goes on"
            )
        if trainer.is_global_zero:
            warnings.warn(text, stacklevel=2)
        self._watcher.accept()

    def _report_unused(self, trainer: Trainer, when: str) -> None:
        assert self._watcher is not None
        unused = self._watcher.unused()
        if unused and trainer.is_global_zero:
            warnings.warn(
                f"{self.title}: '{unused[0]}' ({len(unused)} parameters in all) is trainable and has received no "
                f"gradient by {when}: the loss does not depend on it.\n  It is a layer that is not used, or there is a "
                "detach or no_grad on the way. If that is meant, name it in ignore=[...]",
                stacklevel=2,
            )


def _writers(trainer: Trainer) -> list[str]:
    """Callbacks that may have written a frozen tensor: Lightning's own that write weights, then the user's."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    known = [type(one).__name__ for one in callbacks if is_named(one, *_WRITERS)]
    own = ("lightning.", "pytorch_lightning.", "lightning_freeze.")
    others = [type(one).__name__ for one in callbacks if not type(one).__module__.startswith(own)]
    return list(dict.fromkeys(known or others))


def _of_all_ranks(violations: Sequence[Violation], watcher: Watcher, replicas: bool) -> list[Violation]:
    """The violations of all ranks and the differences between replicas, equal on all ranks, so all stop together."""
    sides: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sides, (list(violations), watcher.fingerprint() if replicas else {}))
    found = {(one.name, one.found): (rank, one) for rank, (ones, _) in reversed(list(enumerate(sides))) for one in ones}
    everywhere = [{(one.name, one.found) for one in ones} for ones, _ in sides]
    merged = [
        one if all(key in side for side in everywhere) else replace(one, found=f"{one.found} (on rank {rank})")
        for key, (rank, one) in found.items()
    ]
    return merged + differing([fingerprint for _, fingerprint in sides], watcher)
