"""Read the YAML files of a LightningCLI config without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_freeze.errors import PlanError


def read(file: str | Path) -> dict[str, Any]:
    """Read the options in a file.

    Raises:
        PlanError: the file cannot be read, is not valid YAML, or does not contain options.
    """
    try:
        found = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise PlanError(f"config {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(
            f"config {file} is not valid YAML: {error}\n  Patterns with *, ? or ! need quotes in YAML"
        ) from error
    if not isinstance(found, dict):
        raise PlanError(
            f"config {file} is not a config of LightningCLI: it holds a {type(found).__name__}, not options"
        )
    return found
