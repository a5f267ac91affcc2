"""Find the source lines of a model's class that freeze parameters, for error messages."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

_FREEZES = re.compile(r"requires_grad\s*=\s*False|requires_grad_\(\s*(requires_grad\s*=\s*)?False\s*\)|\.freeze\(\s*\)")
_LIBRARIES = ("torch", "lightning", "pytorch_lightning")  # users cannot delete lines of these


def freezing_lines(cls: Any) -> list[str]:
    """The lines of a class and of its base classes that freeze parameters; empty without source.

    Args:
        cls: the class of a module.

    Returns:
        `'parameter.requires_grad = False' (model.py, line 12)` for each.
    """
    found = []
    for base in cls.__mro__:
        if base is object or base.__module__.partition(".")[0] in _LIBRARIES:
            continue
        try:
            lines, start = inspect.getsourcelines(base)
            file = Path(inspect.getsourcefile(base) or "").name
        except (OSError, TypeError):
            continue
        for number, line in enumerate(lines, start):
            code = line.partition("#")[0].strip()
            if _FREEZES.search(code):
                found.append(f"'{code}' ({file}, line {number})")
    return found
