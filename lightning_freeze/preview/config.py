"""Build the Trainer, model and data of a LightningCLI config as the user's script would, without running them.

Any error in the config, or in the code that it names, becomes a `FreezeError`.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lightning_freeze.errors import FreezeError, PlanError
from lightning_freeze.preview.config_files import read
from lightning_freeze.preview.parser_message import condensed
from lightning_freeze.preview.user_code import chain, described, origin
from lightning_freeze.trainer._lightning import PACKAGES

__all__ = ["PACKAGES", "Built", "as_user_error", "build", "undisturbed"]

Adjust = Callable[[Any], None]


@dataclass(frozen=True)
class Built:
    """The objects that a config describes.

    Attributes:
        trainer: the Trainer, with the callbacks of the config.
        model: the LightningModule.
        data: the LightningDataModule; None if the model has its own dataloaders.
        config: the parsed options as jsonargparse's Namespace, after `adjust`.
    """

    trainer: Any
    model: Any
    data: Any
    config: Any


def build(
    files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    data: str | None = None,
    adjust: Adjust = lambda trainer: None,
    trainer_class: Callable[[Any], type] | None = None,
) -> Built:
    """Parse the configs of a `fit`, and build what they describe. Call it, and use the result, inside `undisturbed`.

    Args:
        files: YAML or JSON files of LightningCLI; a later file wins. Options may be under `fit:` or not.
        overrides: further options as on the command line, such as `--trainer.max_epochs=3`.
        model: `pkg.mod:Class` of the LightningModule, if the user's script names it instead of the config.
        data: the same for the LightningDataModule.
        adjust: called with the parsed options of the trainer before it is built; may change them.
        trainer_class: Lightning package -> class to use instead of its `Trainer`.

    Raises:
        FreezeError: a file cannot be read, a key does not exist, or a class cannot be instantiated.
    """
    texts = [read(file) for file in files]
    nested = any("fit" in text for text in texts)
    arguments = [part for file in files for part in ("--config", str(file))]
    arguments = [*arguments, "fit", *overrides] if nested else ["fit", *arguments, *overrides]
    named = [text.get("fit", text) if isinstance(text.get("fit", text), dict) else text for text in texts]
    of = f"config {', '.join(map(str, files))}"
    with as_user_error(of):
        classes = [_imported(model, "--model"), _imported(data, "--data")]
        package = _package(classes, named)
        cli = import_module(f"{package}.cli")
    if classes[0] is None and not any(_names_class(options.get("model")) for options in named):
        raise PlanError(
            f"{of} names no model: it has no `model:` with a `class_path:`, as the config of a script that names its "
            "classes itself, LightningCLI(Model, Data).\n  Say which they are: --model pkg.mod:Model, and --data "
            "pkg.mod:Data if there is one"
        )
    with as_user_error(of):
        chosen = import_module(package).Trainer if trainer_class is None else trainer_class(import_module(package))
        run = _builder(cli.LightningCLI, adjust)(
            *classes, trainer_class=chosen, args=arguments, save_config_callback=None, seed_everything_default=False,
            parser_kwargs={"exit_on_error": False, "fit": {"exit_on_error": False}},
        )  # fmt: skip
        return Built(run.trainer, run.model, run.datamodule, run.config["fit"])


def _builder(base: Any, adjust: Adjust) -> Any:
    class Builder(base):  # type: ignore[misc]
        def before_instantiate_classes(self) -> None:
            adjust(self.config["fit"]["trainer"])

        def fit(self, **_: Any) -> None:
            """The function that LightningCLI calls instead of `Trainer.fit`."""

    return Builder


def _names_class(value: Any) -> bool:
    """Whether an option names a class: `class_path: ...`, or the class name alone."""
    return isinstance(value, str) or (isinstance(value, dict) and "class_path" in value)


def _package(classes: Sequence[Any], options: Sequence[dict[str, Any]]) -> str:
    """`lightning.pytorch` or `pytorch_lightning`: the package of the model's class, else an installed one."""
    models = [option["model"] for option in options if isinstance(option.get("model"), dict)]
    for path in [str(found["class_path"]) for found in models if "class_path" in found]:
        with suppress(Exception):  # the parser reports the error
            module, _, name = path.rpartition(".")
            classes = [*classes, getattr(import_module(module), name)]
    origins = {cls.__module__ for found in classes for cls in getattr(found, "__mro__", ())}
    for package in reversed(PACKAGES):
        if any(origin.startswith(f"{package}.") for origin in origins):
            return package
    for package in PACKAGES:
        with suppress(ModuleNotFoundError):
            return str(import_module(package).__name__)
    raise PlanError("PyTorch Lightning is not installed.\n  pip install lightning")


def _imported(name: str | None, option: str) -> Any:
    if name is None:
        return None
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise PlanError(f"{option} {name} is not of the form pkg.mod:Class")
    found = import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


@contextmanager
def as_user_error(of: str) -> Iterator[None]:
    """Turn any error of the parser or the user's code into one message."""
    try:
        yield
    except FreezeError:
        raise
    except ModuleNotFoundError as error:
        if error.name in ("jsonargparse", "docstring_parser", None):
            raise PlanError(
                f"{of}: LightningCLI needs jsonargparse: {error}\n  pip install 'lightning-freeze[cli]'"
            ) from error
        raise PlanError(f"{of}: {error}") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:  # --help, --print_config
            raise
        ours = next((one for one in chain(error) if isinstance(one, FreezeError)), None)
        if ours is not None:  # the parser has wrapped our error
            raise ours from error
        of_parser = type(error).__name__ == "ArgumentError" and origin(error) is None
        raise PlanError(f"{of}: {condensed(str(error)) if of_parser else described(error)}") from error


@contextmanager
def undisturbed(files: Sequence[str | Path]) -> Iterator[None]:
    """Run a user's code without side effects.

    Modules beside the configs and in the current folder can be imported, our command line is hidden, Lightning prints
    nothing, and random state and environment are restored.
    """
    folders = [str(Path(file).resolve().parent) for file in files]
    path, arguments, environment, state = sys.path[:], sys.argv, dict(os.environ), random.getstate()
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    sys.path[:0] = dict.fromkeys([*folders, str(Path.cwd())])
    sys.argv = sys.argv[:1]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:], sys.argv = path, arguments
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        random.setstate(state)
