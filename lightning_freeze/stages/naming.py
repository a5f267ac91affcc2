"""Make the one name of a stage for tables, pictures, logs and optimizer groups."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")
_CHOICE = re.compile(r"(\d*)\[([A-Za-z0-9]+(?:-[A-Za-z0-9])?)\]")


def metric_name(name: str) -> str:
    """Replace characters that loggers may refuse in metric names; letters, digits, `_`, `.` and `-` stay.

    Examples:
        >>> metric_name("model.layer?.*+2")
        'model.layer_._2'
    """
    return _UNFIT.sub("_", name)


def stage_name(patterns: Sequence[str]) -> str:
    r"""Make a name, valid for loggers, for a stage that has none.

    Args:
        patterns: the patterns of the stage; those with `!` are ignored.

    Examples:
        >>> stage_name(["*", "!model.fc"]), stage_name(["model.layer[34]"])
        ('rest', 'model.layer3-4')
        >>> stage_name([r"re:backbone\.7\.1\..*"]), stage_name(["layers.0", "layers.1", "layers.2"])
        ('backbone.7.1', 'layers.0-2')
    """
    kept = [_plain(pattern) for pattern in patterns if not pattern.startswith("!")]
    named = ranges([name for name in kept if name])
    if not named:
        return "rest"
    return named[0] if len(named) == 1 else f"{named[0]}-and-{len(named) - 1}-more"


def _plain(pattern: str) -> str:
    """A pattern without pattern syntax: `model.layer[34].*` -> `model.layer3-4`."""
    text = pattern
    if text.startswith("re:"):
        text = re.sub(r"\.[*+]", "", text[3:].replace(r"\.", "\0")).replace("\0", ".").replace("\\", "")
    text = _CHOICE.sub(lambda found: _choice(found[1], found[2]), text)
    text = _UNFIT.sub("-", re.sub(r"[*?^$]", "", text.replace(" & ", "-")))
    return re.sub(r"\.{2,}", ".", text).strip(".-")


def _choice(before: str, characters: str) -> str:
    """Shorten the choices of a glob class: `34` -> `3-4`, `78` after a `1` -> `17-18`, `135` -> `135`."""
    first, dash, last = characters.partition("-")
    if dash:
        return f"{before}{first}-{before}{last}"
    codes = [ord(character) for character in characters]
    follow = len(codes) > 1 and codes == list(range(codes[0], codes[-1] + 1))
    return f"{before}{characters[0]}-{before}{characters[-1]}" if follow else before + characters


def ranges(names: Sequence[str]) -> list[str]:
    """Join neighbouring names that differ in one number counting up or down: `layers.0-10`.

    Examples:
        >>> ranges(["layers.0", "layers.1", "layers.2", "norm"])
        ['layers.0-2', 'norm']
    """
    found: list[str] = []
    run: list[str] = []
    for name in names:
        if run and not _continues(run, name):
            found += _folded(run)
            run = []
        run.append(name)
    return found + _folded(run)


def _split(name: str) -> tuple[str, int, str] | None:
    parts = re.fullmatch(r"(|.*[._A-Za-z])(\d+)(\D*)", name)
    return (parts[1], int(parts[2]), parts[3]) if parts else None


def _continues(run: Sequence[str], name: str) -> bool:
    last, new = _split(run[-1]), _split(name)
    if last is None or new is None or (last[0], last[2]) != (new[0], new[2]):
        return False
    step = new[1] - last[1]
    before = _split(run[-2]) if len(run) > 1 else None
    return abs(step) == 1 and (before is None or step == last[1] - before[1])


def _folded(run: Sequence[str]) -> list[str]:
    first, last = (_split(run[0]), _split(run[-1])) if run else (None, None)
    if len(run) < 2 or first is None or last is None:
        return list(run)
    return [f"{first[0]}{min(first[1], last[1])}-{max(first[1], last[1])}{first[2]}"]


def distinct(names: Sequence[str]) -> list[str]:
    """Make names unique: a second `head` becomes `head-2`."""
    found: list[str] = []
    for name in names:
        number = next(k for k in range(1, len(names) + 2) if (name if k == 1 else f"{name}-{k}") not in found)
        found.append(name if number == 1 else f"{name}-{number}")
    return found
