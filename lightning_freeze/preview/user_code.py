"""Find the line of the user's own code that an error comes from."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Paths of code that is not the user's own: the standard library, installed packages, this package.
_OTHERS = tuple(
    str(Path(folder).resolve())
    for folder in (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1]))
)


@dataclass(frozen=True)
class Origin:
    """An error, and the line of the user's own code that led to it.

    Attributes:
        error: the error that was raised first.
        file: the path, relative to the current folder if that is shorter.
        line: line number, from 1.
        function: the function of the line; `<module>` at the top level of a file.
        text: the source line.
    """

    error: BaseException
    file: str
    line: int
    function: str
    text: str


def origin(error: BaseException) -> Origin | None:
    """The first error in a chain that passed through the user's own code; None if none did."""
    for one in reversed(list(chain(error))):
        for frame in reversed(traceback.extract_tb(one.__traceback__)):
            if _is_own(frame.filename):
                place = (_short(frame.filename), frame.lineno or 0, frame.name, (frame.line or "").strip())
                return Origin(one, *place)
    return None


def described(error: BaseException) -> str:
    """The class and text of an error, followed by the line of the user's own code that it came from."""
    found = origin(error)
    first = error if found is None else found.error
    said = f"{type(first).__name__}: {first}"
    return said if found is None else f"{said}\n  {found.file}, line {found.line}, in {found.function}: {found.text}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and the errors it was raised from, without duplicates: `raise inner from outer` makes a cycle."""
    seen: dict[int, BaseException] = {}
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen[id(following)] = following
        yield following
        following = following.__cause__ or following.__context__


def _is_own(file: str) -> bool:
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    return not {"site-packages", "dist-packages"} & set(path.parts) and not any(
        path.is_relative_to(folder) for folder in _OTHERS
    )


def _short(file: str) -> str:
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
