"""How callbacks and stages show themselves: as the call that makes them, and as a small table in a notebook."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from html import escape
from typing import Any


def given(thing: object) -> dict[str, Any]:
    """The arguments of a constructor that are not at their defaults, read from the attributes of the same names."""
    found = {}
    for name, parameter in inspect.signature(type(thing)).parameters.items():
        value = getattr(thing, name, parameter.default)
        if not callable(value) and value is not parameter.default and value != parameter.default:
            found[name] = value
    return found


def call_of(thing: object) -> str:
    """The call: `FreezeLayers(patterns='model.conv1', stop=3)`."""
    return f"{type(thing).__name__}({', '.join(f'{name}={value!r}' for name, value in given(thing).items())})"


def table_of(title: str, values: Mapping[str, Any]) -> str:
    """A table in HTML: a line for each value."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'><code>{escape(repr(value))}</code></td></tr>"
        for name, value in values.items()
    )
    return f"<table><caption style='text-align:left'><b>{escape(title)}</b></caption>{rows}</table>"
