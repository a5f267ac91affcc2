"""Compute the outputs of frozen modules once, and reuse them."""

from __future__ import annotations

import tempfile
import uuid
import warnings
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_freeze import arguments
from lightning_freeze.cache.folder import Folder
from lightning_freeze.cache.memo import FrozenMemo
from lightning_freeze.cache.row_store import Storage
from lightning_freeze.errors import PlanError
from lightning_freeze.report.rendering import show
from lightning_freeze.trainer._lightning import LightningModule, Trainer
from lightning_freeze.trainer.callback import FreezeCallback
from lightning_freeze.trainer.strategies import shards
from lightning_freeze.trainer.viewed_loaders import ViewedLoaders, default_seed

_STEPS = ("training_step", "validation_step")


class FeatureCache(FreezeCallback):
    """Compute the outputs of frozen modules once per distinct input row, and reuse them.

    Weights, losses, logs, counters and random state are those of the run without the cache, bit for bit, and
    `training_step` runs exactly as often. Anything a step needs that is not stored is computed. The cache finds the
    modules that are frozen, in eval mode and deterministic, and stores everything that the trainable part uses of their
    outputs: skip connections, several towers, masks. Rows are identified by a 128-bit checksum of the input, so loaders
    and samplers are not changed, and an augmented image is computed like any new one. Validation within a fit is served
    too.

    `views=K` changes the training data: each sample has at most K augmented versions, so that rows of augmented samples
    come again. Epoch e shows version e mod K. The dataset's own transforms draw it from (seed of the run, version,
    sample): the random state of Python, NumPy and torch is set around `__getitem__`, in workers too, and restored. A
    resumed run continues with the same versions.

    Args:
        storage: "memory" of each process, or "disk": files that all processes share and that are deleted at the end.
        dir: folder of the files; None: the folder for temporary files.
        max_gb: limit in GiB for the rows of all processes that share them. When it is reached, stored rows are used and
            other rows are computed.
        persist: whether the files stay in `dir`. A later run, another trial of a sweep or a relaunch finds the rows of
            a frozen part with the same weights, code and torch version on the same kind of device. The command
            `lightning-freeze cache DIR` lists and clears them.
        verify: whether to compare stored rows with computed ones before they are first used.
        views: maximum number of augmented versions of each sample; None: samples as the loader gives them. The loader
            must be a torch DataLoader over a map-style dataset. Random numbers drawn elsewhere (in `collate_fn`, on the
            device, by a generator of the dataset) are not controlled.
        verbose: print what is stored and what was saved, whenever the frozen part changes, on rank 0.

    Raises:
        PlanError: the arguments cannot work.

    Examples:
        >>> FeatureCache(max_gb=2).storage
        'memory'
    """

    needs_trainer = True

    def __init__(
        self,
        storage: Literal["memory", "disk"] = "memory",
        dir: str | None = None,
        max_gb: float = 4.0,
        verify: bool = True,
        views: int | None = None,
        verbose: bool = True,
        persist: bool = False,
    ) -> None:
        arguments.check_choice(storage, ("memory", "disk"), "storage", self.title)
        if isinstance(max_gb, bool) or not isinstance(max_gb, int | float) or not 0 < max_gb < float("inf"):
            raise PlanError(f"{self.title}: max_gb={max_gb!r} must be a number of GiB above 0")
        arguments.check_flag(verify, "verify", self.title)
        if views is not None:
            arguments.check_positive(views, "views", self.title)
        if dir is not None and not (isinstance(dir, str | Path) and str(dir)):
            raise PlanError(f"{self.title}: dir={dir!r} must be the path of a folder")
        if dir is not None and storage != "disk":
            raise PlanError(f"{self.title}: dir={dir!r} has a meaning only with storage='disk'")
        arguments.check_flag(persist, "persist", self.title)
        if persist and (storage != "disk" or dir is None):
            raise PlanError(
                f"{self.title}: persist=True keeps files, so it has a meaning only with storage='disk' and a dir, got "
                f"storage={storage!r} and dir={dir!r}"
            )
        self.storage = storage
        self.dir = dir
        self.max_gb = max_gb
        self.verify = verify
        self.views = views
        self.verbose = verbose
        self.persist = persist
        self._cache: FrozenMemo | None = None
        self._loaders: ViewedLoaders | None = None
        self._seed = 0

    def check_trainer(self, trainer: Trainer) -> None:
        found = [one for one in list(trainer.callbacks) if isinstance(one, FeatureCache)]  # type: ignore[attr-defined]
        others = [one for one in found if one.views is not None]
        if self.views is not None and len(others) > 1:
            raise PlanError(f"{self.title}: {len(others)} of them ask for views of the training data.\n  Leave one")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.views is not None:
            self._seed = trainer.strategy.broadcast(default_seed())
            self._loaders = ViewedLoaders(trainer, self.views, lambda: self._seed)

    def state_of_run(self) -> dict[str, Any]:
        return {} if self.views is None else {"seed": self._seed}

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        self._seed = state.get("seed", self._seed)

    def remarks(self) -> list[str]:
        if self.views is None:
            return []
        return [
            f"FeatureCache(views={self.views}) changes the training data: in epoch e each sample comes in version "
            f"e mod {self.views}, drawn by its dataset from seed {self._seed}."
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._loaders is not None:
            self._loaders.catch_up()
        show = partial(_show, trainer) if self.verbose else _keep_quiet
        self._cache = FrozenMemo(pl_module, self._room(trainer), self.verify, show, _warn)
        if why := _impossible(trainer, pl_module):
            self._cache.turn_off(why)

    def _room(self, trainer: Trainer) -> Storage | Folder:
        size = int(self.max_gb * 2**30)
        if self.storage == "memory":
            return Storage(size)
        folder = Path(self.dir or tempfile.gettempdir())
        if self.persist:
            return Folder(folder, size, persist=True)
        return Folder(folder / f"lightning-freeze-{trainer.strategy.broadcast(uuid.uuid4().hex)}", size)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._wrap(pl_module, "training_step")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        _unwrap(pl_module, "training_step")
        if self._loaders is not None:
            self._loaders.check()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if self._cache is not None:
            self._cache.turn()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._wrap(pl_module, "validation_step")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        _unwrap(pl_module, "validation_step")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._cache is not None:
            self._cache.turn()

    def _wrap(self, pl_module: LightningModule, name: str) -> None:
        # of two caches the first one serves: the other one would take its interception for a change of the model
        if self._cache is not None and not self._cache.off and not _is_wrapped(pl_module, name):
            step = getattr(pl_module, name)
            pl_module.__dict__[name] = update_wrapper(partial(_cached, self._cache, step), step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._cache is not None:
            self._cache.epoch_end(again=(trainer.current_epoch + 1) % (self.views or 1) == 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(pl_module)
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close(pl_module)
        super().teardown(trainer, pl_module, stage)

    def _close(self, pl_module: LightningModule) -> None:
        for name in _STEPS:
            _unwrap(pl_module, name)
        if self._cache is not None:
            self._cache.close()
            self._cache = None
        if self._loaders is not None:
            self._loaders.close()
            self._loaders = None


def _cached(cache: FrozenMemo | None, step: Any, *args: Any, **kwargs: Any) -> Any:
    """A step of the module while a batch is processed; a copy of the module has no cache."""
    if cache is None:
        return step(*args, **kwargs)
    return (cache.run if torch.is_grad_enabled() else cache.evaluate)(step, *args, **kwargs)


def _is_wrapped(pl_module: LightningModule, name: str) -> bool:
    found = vars(pl_module).get(name)
    return isinstance(found, partial) and found.func is _cached


def _unwrap(pl_module: LightningModule, name: str) -> None:
    if _is_wrapped(pl_module, name):
        found = pl_module.__dict__.pop(name)
        if getattr(found.args[1], "__func__", None) is not getattr(type(pl_module), name):
            pl_module.__dict__[name] = found.args[1]


def _impossible(trainer: Trainer, pl_module: LightningModule) -> str:
    if shards(trainer.strategy):
        return f"{type(trainer.strategy).__name__} moves the weights in each step"
    if getattr(pl_module, "_compiler_ctx", None) is not None:
        return "the module is compiled, and what is compiled into one piece cannot be skipped in parts"
    return ""


def _show(trainer: Trainer, text: str) -> None:
    if trainer.is_global_zero:
        show(text)


def _keep_quiet(text: str) -> None:
    pass


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
