"""Make trainable copies of the user's module, data and Trainer arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from lightning_freeze.errors import PlanError
from lightning_freeze.preview.config import PACKAGES, Built, as_user_error
from lightning_freeze.suggest.folds import Folds
from lightning_freeze.suggest.isolation import copy_of_data, copy_of_module
from lightning_freeze.suggest.metric import LOSS, choose
from lightning_freeze.suggest.trial import Task, validated

# Arguments of the user's Trainer that trials use. Trials run on one device and without output.
KEPT = (
    "accelerator", "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
    "limit_train_batches", "deterministic", "detect_anomaly", "inference_mode",
)  # fmt: skip
_LR = re.compile(r"^(base_|max_|init_|initial_)?(lr|learning_rate)$")


def task_of(
    module: Any,
    data: Any,
    options: Mapping[str, Any],
    *,
    monitor: str | None = None,
    mode: str | None = None,
    folds: int = 5,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
) -> Task:
    """The task of a search: copies of module and data, and the relevant arguments of the Trainer.

    Args:
        module: a LightningModule.
        data: a LightningDataModule, a training dataloader, or None if the module has dataloaders.
        options: arguments of the user's Trainer.
        monitor: the validation metric to compare candidates by.
        mode: its direction.
        folds: number of folds of the training data.
        seed: seed of everything that is random.
        callbacks: callbacks of the user's Trainer; only their `monitor` is used.

    Raises:
        PlanError: an argument cannot work, the data cannot be divided into folds, or the metric is not logged.
    """
    package = package_of(module)
    kept = {name: options[name] for name in KEPT if options.get(name) is not None} | {"devices": 1}
    kept.setdefault("accelerator", "auto")
    epochs, steps = _length(options)
    whole = data if hasattr(data, "train_dataloader") else None
    task = Task(copy_of_module(module), package, kept, Folds.__new__(Folds), epochs, steps, seed)
    with as_user_error("the training data"), redirect_stdout(StringIO()):
        source = copy_of_data(data) if whole is not None else data
        task.folds = Folds(_loader(task, source), folds, seed)
        task.data = source if whole is not None else None
    if steps >= 0:
        task.epochs = (
            max(1, min(epochs, -(-steps // task.epoch_steps))) if epochs > 0 else -(-steps // task.epoch_steps)
        )
    with as_user_error("validation"), redirect_stdout(StringIO()):
        task.metric = _metric(task, monitor, mode, callbacks)
    return task


def package_of(module: Any) -> str:
    """`lightning.pytorch` or `pytorch_lightning`, by the class of the module.

    Raises:
        PlanError: it is not a LightningModule.
    """
    origins = [cls.__module__ for cls in type(module).__mro__]
    for package in PACKAGES:
        if any(origin.startswith(f"{package}.") for origin in origins):
            return package
    raise PlanError(f"{type(module).__name__} is not a LightningModule.\n  Give suggest a LightningModule")


def _length(options: Mapping[str, Any]) -> tuple[int, int]:
    epochs, steps = options.get("max_epochs"), options.get("max_steps", -1)
    epochs = (-1 if steps not in (None, -1) else None) if epochs is None else int(epochs)
    steps = -1 if steps is None else int(steps)
    if epochs is None or (epochs == -1 and steps == -1) or epochs == 0 or steps == 0:
        raise PlanError(
            f"the run has no length: max_epochs={options.get('max_epochs')}, max_steps={options.get('max_steps', -1)}."
            "\n  Say how long you mean to train: max_epochs=10"
        )
    return epochs, steps


def _loader(task: Task, source: Any) -> Any:
    if source is not None and not hasattr(source, "train_dataloader"):
        return copy_of_data(source)
    owner = copy_of_module(task.module) if source is None else source
    owner.trainer = task.trainer(max_epochs=1)
    owner.prepare_data()
    owner.setup("fit")
    return owner.train_dataloader()


def _metric(task: Task, monitor: str | None, mode: str | None, callbacks: Sequence[Any]) -> Any:
    """Validate one batch with the initial weights to see what is logged."""
    base: Any = next(cls for cls in type(task.module).__mro__ if cls.__name__ == "LightningModule")
    if type(task.module).validation_step is base.validation_step:
        if monitor is not None:
            raise PlanError(
                f"--monitor {monitor}: {type(task.module).__name__} has no validation_step.\n  Add one that logs it, "
                "or leave --monitor out: the training loss on held-out data judges"
            )
        if not task.module.automatic_optimization:
            raise PlanError(
                f"{type(task.module).__name__} optimizes by hand and has no validation_step, so nothing can judge.\n"
                "  Add a validation_step that logs a metric"
            )
        return choose((), None, None)
    task.metric = choose((), None, None)
    logged = [name for name in validated(task, copy_of_module(task.module), 0, 1, own=True) if name != LOSS]
    if not logged and not task.module.automatic_optimization:
        raise PlanError(f"validation_step of {type(task.module).__name__} logs nothing.\n  Log a metric in it")
    return choose(logged, monitor, mode, callbacks)


def lr_argument(built: Built, base: float) -> str:
    """The model's argument for the learning rate, by its name, and equal to the optimizer's initial rate."""
    model = built.config.get("model")
    arguments = (model.get("init_args") or model) if model is not None else {}
    for name, value in vars(arguments).items() if not isinstance(arguments, Mapping) else arguments.items():
        if _LR.match(name) and isinstance(value, int | float) and abs(value - base) <= 1e-6 * base:
            return str(name)
    return ""
