"""Tables of README and docs that are written from results: each between two marks of its own."""

from __future__ import annotations

import re
from pathlib import Path

EVIDENCE = Path(__file__).parents[1] / "examples" / "docs" / "evidence.md"


def replaced(text: str, name: str, block: str, option: str = "--readme") -> str:
    """The text with `block` between the marks of benchmark `name`.

    Raises:
        SystemExit: the marks are not there exactly once.
    """
    start, end = f"<!-- {name}: written by `python benchmarks/{name}.py {option}` -->", f"<!-- {name} end -->"
    new, count = re.subn(
        f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n\n{block}\n{end}", text, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"the page should have the marks {start} and {end} once, and has them {count} times")
    return new


def write(name: str, block: str, page: Path = EVIDENCE, option: str = "--readme") -> None:
    """Put it there."""
    page.write_text(replaced(page.read_text(), name, block, option))
