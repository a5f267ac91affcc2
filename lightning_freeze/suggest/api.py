"""The two entry points of a search: a module with its data, or a LightningCLI config."""

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

    The search trains copies, so the module, the data and all random state are unchanged afterwards. Ctrl-C ends the
    search early and returns the results so far.

    Args:
        module: a LightningModule with its pretrained weights and its new head.
        data: a LightningDataModule or a training DataLoader; None: the module has its own dataloaders.
        budget: time for the search, in minutes.
        trainer: arguments of the Trainer that you will use: `max_epochs` or `max_steps`, and, if you set them,
            accelerator, precision, accumulate_grad_batches and gradient_clip_val.
        monitor: the metric to compare candidates by, as `validation_step` logs it; None: the metric that a callback
            monitors, else the first that looks like an accuracy, else a loss.
        mode: "min" or "max"; None: by the name of the metric.
        folds: number of folds of the training data; each is held out in turn. The test set is never read.
        seed: seed of folds, order of batches, dropout and augmentation.
        out: a file for the YAML block. Measurements are stored beside it, and a second call continues from them.
        progress: whether to show a progress bar on stderr.

    Returns:
        The candidates with their intervals, and the choice: `callbacks()`, `rate`, `yaml()`.

    Raises:
        PlanError: the budget is too small for one candidate, there is no metric or only one class, or the module
            cannot be copied.
        ResumeError: the measurements beside `out` belong to another module, data or seed.

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
    """`suggest` for the fit that a LightningCLI config describes.

    Args:
        files: the configs; a later one wins.
        overrides: further options as on the command line.
        budget: time for the search, in minutes.
        model: `pkg.mod:Class`, if the config does not name it.
        data: the same for the data module.
        monitor: see `suggest`.
        mode: see `suggest`.
        folds: see `suggest`.
        seed: see `suggest`.
        out: see `suggest`.
        progress: see `suggest`.

    Raises:
        FreezeError: as in `suggest`, or the config is wrong.
    """
    with undisturbed(files), same_random_state(), as_user_error(f"config {', '.join(map(str, files))}"):
        seed_all(seed)  # a call that continues this search gets the same new head
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
    """Let the config's own Trainer use one device and write nothing; it trains nothing here."""
    for name, value in {"logger": False, "devices": 1, "num_nodes": 1, "strategy": "auto"}.items():
        if name in options:
            options[name] = value


def _kept(files: Sequence[str | Path]) -> dict[str, Any]:
    """The user's other callbacks and the model as in the config; the YAML block repeats what it would replace."""
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
    """The settings that measurements depend on; measurements with other settings are not comparable."""
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
