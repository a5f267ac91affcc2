"""Store measurements on disk, one per line, so that an interrupted search can continue."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_freeze.errors import ResumeError
from lightning_freeze.suggest.trial import Measured

Key = tuple[Any, ...]


class Record:
    """Measurements by key.

    Args:
        path: path of the JSON lines file; None: nothing is stored.
        about: the model, data and seed of the measurements. A file with other values is refused.

    Raises:
        ResumeError: the file belongs to another search.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[Key, dict[str, Any]] = {}
        self.spent = 0.0
        if path is None:
            return
        if path.exists():
            self._read(path, about)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"about": about}) + "\n")

    def _read(self, path: Path, about: dict[str, Any]) -> None:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        before = lines[0].get("about", {}) if lines else {}
        if differing := [name for name in about if before.get(name) != about[name]]:
            name = differing[0]
            raise ResumeError(
                f"{path} holds measurements of another search: {name} was {before.get(name)!r} and is {about[name]!r}."
                "\n  Delete it, or give another --out"
            )
        for line in lines[1:]:
            self.found[tuple(line["key"])] = line["value"]
            self.spent = max(self.spent, line["spent"])

    def get(self, *key: Any) -> dict[str, Any] | None:
        """The measurement of a key."""
        return self.found.get(key)

    def add(self, key: Key, value: dict[str, Any], spent: float) -> None:
        """Store a measurement; `spent` is the time of the search so far, in seconds."""
        self.found[key] = value
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"key": list(key), "value": value, "spent": round(spent, 2)}) + "\n")

    def trial(self, *key: Any) -> Measured | None:
        """The trial of a key."""
        found = self.get(*key)
        return None if found is None else Measured(**found)

    def add_trial(self, key: Key, measured: Measured, spent: float) -> None:
        self.add(key, asdict(measured), spent)
