"""Condense the messages of jsonargparse to one line: which option of which class is wrong, and what was meant.

The message for a failed union lists what each of its members expected, indented. The relevant line is the deepest one
below classes and keys that the parser recognised.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules

_NOISE = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value|Not a valid subclass|Subclass types expect|a class path|"
    r"a dict with|Expected a <class 'NoneType'>|Problem with given|Parser key"
)
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_KEY = re.compile(r'Parser key "([^"]+)"')
_TOP = ("ckpt_path", "data", "lr_scheduler", "model", "optimizer", "seed_everything", "trainer")


@dataclass(frozen=True)
class _Leaf:
    """A line with an error, and the keys and classes above it, outermost first."""

    text: str
    above: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        return [found[1] for line in self.above if (found := _KEY.match(line))]

    @property
    def owner(self) -> str | None:
        classes = [found[1] for line in self.above if (found := _CLASS.match(line))]
        return classes[-1] if classes else None


def condensed(message: str) -> str:
    """The error in a config, in one line, from the parser's message."""
    leaves = _leaves(message)
    if not leaves:
        return message
    depth = max(len(leaf.above) for leaf in leaves)
    deepest = [leaf for leaf in leaves if len(leaf.above) == depth]
    first = next((leaf for leaf in deepest if not leaf.text.startswith("Expected a")), deepest[0])
    if first.text.startswith("Expected a"):
        return _wrong_type(first, deepest, message)
    return _named(first) or ": ".join([*first.keys[:1], *([first.owner] if first.owner else []), first.text])


def _leaves(message: str) -> list[_Leaf]:
    found: list[_Leaf] = []
    above: list[tuple[int, str]] = []
    for line in message.splitlines():
        text = line.lstrip(" -")
        indent = len(line) - len(text)
        above = [(place, other) for place, other in above if place < indent]
        if _CLASS.match(text) or _KEY.match(text):
            above.append((indent, text))
        elif text and not _NOISE.match(text):
            found.append(_Leaf(text, tuple(other for _, other in above)))
    return found


def _named(leaf: _Leaf) -> str | None:
    """The message for a name that does not exist, with the nearest existing one."""
    text, owner = leaf.text, leaf.owner or ""
    where = f"{leaf.keys[0]}: " if leaf.keys else ""
    if found := re.match(r"Option '([^']+)' is not accepted", text):
        return f"{where}{owner} has no argument '{found[1]}'{_meant(found[1], _arguments(owner))}"
    if found := re.match(r"module '([^']+)' has no attribute '([^']+)'", text):
        return f"{where}{owner}: {found[1]} has no '{found[2]}'{_meant(found[2], dir(sys.modules.get(found[1])))}"
    if found := re.match(r"No module named '([^']+)'", text):
        return f"{where}{owner}: there is no module '{found[1]}'{_meant(found[1], (m.name for m in iter_modules()))}"
    if found := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
        return f"{where}{found[1]} is not a {found[2]}"
    if found := re.match(r"Subcommand '\w+' does not accept option '([^']+)'", text):
        return f"there is no option '{found[1]}'{_meant_option(found[1])}"
    if found := re.match(r"[Uu]nrecognized arguments: --(\S+)", text):
        ours = ("config", "model", "data", "plot", "steps-per-epoch", "traceback")
        return f"there is no option '--{found[1]}'{_meant(found[1].partition('=')[0], ours, '--')}"
    return None


def _wrong_type(leaf: _Leaf, others: Iterable[_Leaf], message: str) -> str:
    """The message for a value of a wrong type."""
    expected = list(dict.fromkeys(_plain(one.text) for one in others if one.above == leaf.above))
    value = re.search(r"Got value: (.*)", leaf.text) or re.search(r"Given value: (.*)", message)
    got = f", got {value[1]}" if value else ""
    path = ".".join(key[1] if (key := _KEY.match(line)) else _class_name(line) for line in leaf.above)
    return f"{path} must be {' or '.join(expected)}{got}"


def _class_name(line: str) -> str:
    found = _CLASS.match(line)
    return found[1].rpartition(".")[2] if found else line


def _plain(text: str) -> str:
    """`Expected a <class 'int'>. Got value: x` -> `int`."""
    named = text.removeprefix("Expected a ").partition(". Got value")[0].rstrip(".")
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", named)


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return []


def _meant_option(option: str) -> str:
    """The nearest option at the top level of a config, or of the Trainer."""
    top, dot, name = option.partition(".")
    near = get_close_matches(top, _TOP, n=1)
    if top in _TOP and top == "trainer" and dot:
        return _meant(name.partition(".")[0], _arguments("lightning.pytorch.Trainer"), "trainer.")
    return f".\n  Did you mean {near[0]}{dot}{name}?" if near and near[0] != top else ""


def _meant(wrong: str, known: Iterable[str], prefix: str = "") -> str:
    near = get_close_matches(wrong, list(known), n=1)
    return f".\n  Did you mean {prefix}{near[0]}?" if near else ""
