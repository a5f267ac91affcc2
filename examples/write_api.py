"""Write the API page from the docstrings: `python examples/write_api.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from docstring_parser import Docstring, parse

import lightning_freeze
from lightning_freeze import FreezeError

PAGE = Path(__file__).parent / "docs" / "api.md"


def page() -> str:
    """The whole page: callbacks first, then functions and `Stage`, then errors."""
    things = {name: getattr(lightning_freeze, name) for name in vars(lightning_freeze)["__all__"]}
    errors = {name for name, thing in things.items() if inspect.isclass(thing) and issubclass(thing, FreezeError)}
    callbacks = {name for name, thing in things.items() if hasattr(thing, "on_train_epoch_start")}
    parts = ["# API\n\nWritten from the docstrings by `examples/write_api.py`.\n"]
    for heading, names in (
        ("Callbacks", callbacks),
        ("Functions", things.keys() - callbacks - errors),
        ("Errors", errors),
    ):
        parts.append(f"## {heading}\n")
        parts += ["\n".join(entry(name, things[name])) for name in sorted(names, key=lambda name: (name.lower(), name))]
    return "\n".join(parts)


def entry(name: str, thing: object) -> Iterator[str]:
    """One name: signature, text, arguments, what is returned and raised, example."""
    text = parse(inspect.getdoc(thing) or "")
    yield f"### `{name}`\n"
    if not (inspect.isclass(thing) and issubclass(thing, FreezeError)):
        yield f"```text\n{signature(name, thing)}\n```\n"
    yield from (f"{paragraph}\n" for paragraph in (text.short_description, text.long_description) if paragraph)
    yield from lists(text)
    for example in text.examples:
        yield f"```pycon\n{example.description}\n```\n"


def signature(name: str, thing: object) -> str:
    """The call with its defaults, without types: these are in the source, the units in the text."""
    found = inspect.signature(thing)  # type: ignore[arg-type]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    plain = [re.sub(r"=<function .*>$", "=...", str(parameter)) for parameter in bare]
    shown = f"{name}({', '.join(plain)})"
    return shown if len(shown) <= 110 else f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in plain) + ")"


def lists(text: Docstring) -> Iterator[str]:
    """Arguments, what is returned, what is raised."""
    if text.params:
        yield "\n".join(f"- `{item.arg_name}`: {flat(item.description)}" for item in text.params) + "\n"
    if text.returns:
        yield f"Returns: {flat(text.returns.description)}\n"
    if text.raises:
        yield "\n".join(f"- raises `{item.type_name}`: {flat(item.description)}" for item in text.raises) + "\n"


def flat(description: str | None) -> str:
    return re.sub(r"\s+", " ", description or "")


if __name__ == "__main__":
    PAGE.write_text(page())
