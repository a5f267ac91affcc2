"""The two doors of a search: a module with its data, or a LightningCLI config."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_freeze.errors import PlanError
from lightning_freeze.model.fingerprint import fingerprint
from lightning_freeze.preview.config import as_user_error, build, undisturbed
from lightning_freeze.suggest.budget import Budget
from lightning_freeze.suggest.isolation import same_random_state, seed_all
from lightning_freeze.suggest.record import Record
from lightning_freeze.suggest.search import Search, Show
from lightning_freeze.suggest.suggestion import Suggestion
from lightning_freeze.suggest.tasks import lr_argument, task_of
from lightning_freeze.suggest.trial import Task

BUDGET = 10.0  # minutes


def suggest(
    module: Any,
    data: Any = None,
    budget: float = BUDGET,
    *,
    trainer: Mapping[str, Any],
    monitor: str | None = None,
    mode: str | None = None,
    folds: int = 5,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Suggestion:
    """Find by measuring which layers to train, when, and at what learning rate.

    Copies are trained, so the module, the data and all random state are as before when it returns. Ctrl-C ends the
    search early with what is known by then.

    Args:
        module: a LightningModule with its pretrained weights and its new head.
        data: a LightningDataModule or a training DataLoader; None: the module has its own.
        budget: minutes.
        trainer: arguments of the Trainer that you mean to use: `max_epochs` or `max_steps`, and if you use them
            accelerator, precision, accumulate_grad_batches, gradient_clip_val.
        monitor: the metric that judges, as `validation_step` logs it; None: what a callback monitors, else the first
            that looks like an accuracy, else a loss.
        mode: "min" or "max"; None: by the metric's name.
        folds: parts of the training data; each is held out in turn. The test set is never read.
        seed: of folds, order of batches, dropout and augmentation.
        out: a file for the YAML block. Measurements go to a file beside it, from which a second call goes on.
        progress: show a bar on stderr.

    Returns:
        The candidates with their intervals, and the choice: `callbacks()`, `rate`, `yaml()`.

    Raises:
        PlanError: a budget too small for one candidate, no metric, one class, a module that cannot be copied.
        ResumeError: the measurements beside `out` are of another module, data or seed.

    Source: successive halving (Jamieson and Talwalkar, 2016, arXiv:1502.07943).
    """
    with undisturbed(()), same_random_state():
        task = task_of(module, data, trainer, monitor=monitor, mode=mode, folds=folds, seed=seed)
        return _searched(task, budget, out, progress)


def from_config(
    files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    budget: float = BUDGET,
    *,
    model: str | None = None,
    data: str | None = None,
    monitor: str | None = None,
    mode: str | None = None,
    folds: int = 5,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Suggestion:
    """The same for the fit that a LightningCLI config describes.

    Args:
        files: the configs; a later one wins.
        overrides: further options as on the command line.
        budget: minutes.
        model: `pkg.mod:Class`, where the config does not name it.
        data: the same of the data module.
        monitor: see `suggest`.
        mode: see `suggest`.
        folds: see `suggest`.
        seed: see `suggest`.
        out: see `suggest`.
        progress: see `suggest`.

    Raises:
        FreezeError: what `suggest` raises, and whatever is wrong with the config.
    """
    with undisturbed(files), same_random_state(), as_user_error(f"config {', '.join(map(str, files))}"):
        seed_all(seed)  # a new head is the same in a call that goes on from this one
        built = build(files, overrides, model=model, data=data, adjust=_alone)
        options = dict(built.config["trainer"].items())
        others = [one for one in built.trainer.callbacks if not type(one).__module__.startswith("lightning_freeze")]
        task = task_of(
            built.model, built.data, options, monitor=monitor, mode=mode, folds=folds, seed=seed, callbacks=others
        )
        found = _searched(task, budget, None, progress, out)
        found.config = _kept(files)
        found.lr_argument = lr_argument(built, task.base)
        _write(found, out)
        return found


def _alone(options: Any) -> None:
    """One device, nothing written: what the config's own Trainer is made with, which trains nothing here."""
    for name, value in {"logger": False, "devices": 1, "num_nodes": 1, "strategy": "auto"}.items():
        if name in options:
            options[name] = value


def _kept(files: Sequence[str | Path]) -> dict[str, Any]:
    """The user's other callbacks, and the model, as the config has them: the block repeats what it would replace."""
    found: dict[str, Any] = {}
    for file in files:
        text = yaml.safe_load(Path(file).read_text())
        options = text.get("fit", text)
        found["nested"] = "fit" in text
        if "model" in options:
            found["model"] = options["model"]
        callbacks = (options.get("trainer") or {}).get("callbacks")
        if callbacks is not None:
            listed = callbacks if isinstance(callbacks, list) else [callbacks]
            found["callbacks"] = [one for one in listed if not _ours(one)]
    return found


def _ours(callback: Any) -> bool:
    path = callback.get("class_path", "") if isinstance(callback, dict) else str(callback)
    return path.startswith("lightning_freeze.")


def _searched(
    task: Task, budget: float, out: str | Path | None, progress: bool, beside: str | Path | None = None
) -> Suggestion:
    if budget <= 0:
        raise PlanError(f"the budget must be more than 0 minutes, got {budget:g}")
    path = out or beside
    record = Record(None if path is None else Path(f"{path}.runs.jsonl"), _about(task))
    with _bar(progress) as show:
        found = Search(task, Budget(60 * budget, record.spent), record, show).go()
    _write(found, out)
    return found


def _about(task: Task) -> dict[str, Any]:
    """What measurements depend on: with any of it changed they are not comparable."""
    weights = 0
    for one in fingerprint(task.module).values():
        weights = (weights * 31 + one) % 2**63
    return {
        "model": type(task.module).__name__, "weights": weights, "rows": sum(map(len, task.folds.parts)),
        "folds": task.folds.count, "epochs": task.epochs, "seed": task.seed, "metric": task.metric.name,
    }  # fmt: skip


def _write(found: Suggestion, out: str | Path | None) -> None:
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(found.yaml())


@contextmanager
def _bar(shown: bool) -> Iterator[Show]:
    if not shown:
        yield lambda text, part: None
        return
    columns = (TextColumn("{task.description:48.48}"), BarColumn(10), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        one = bar.add_task("", total=1.0)
        yield lambda text, part: bar.update(one, description=text, completed=part)
