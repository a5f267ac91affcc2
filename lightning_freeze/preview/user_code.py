"""Where an error comes from in the user's own code: file, line, and what stands there."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Not the user's own: the standard library, what is installed, and this package.
_OTHERS = tuple(
    str(Path(folder).resolve())
    for folder in (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1]))
)


@dataclass(frozen=True)
class Origin:
    """An error, and the line of the user's own code that led to it.

    Attributes:
        error: the one that was raised first.
        file: as short as it can be from the current folder.
        line: counted from 1.
        function: where the line stands; `<module>` at the top of a file.
        text: the line.
    """

    error: BaseException
    file: str
    line: int
    function: str
    text: str


def origin(error: BaseException) -> Origin | None:
    """The first error in the chain of an error that passed through the user's own code; None when none did."""
    for one in reversed(list(chain(error))):
        for frame in reversed(traceback.extract_tb(one.__traceback__)):
            if _is_own(frame.filename):
                place = (_short(frame.filename), frame.lineno or 0, frame.name, (frame.line or "").strip())
                return Origin(one, *place)
    return None


def described(error: BaseException) -> str:
    """The class and the text of an error, and below it the line of the user's own code that it came from."""
    found = origin(error)
    first = error if found is None else found.error
    said = f"{type(first).__name__}: {first}"
    return said if found is None else f"{said}\n  {found.file}, line {found.line}, in {found.function}: {found.text}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on; each once, for `raise inner from outer` closes a circle."""
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
