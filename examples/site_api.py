"""A hook of mkdocs: on the site, the page of the API is made by mkdocstrings, with types and links to the source.

The page in the repository is the same docstrings as plain Markdown (`write_api.py`): its headings are the names.
"""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace what stands under the heading of each name by a directive of mkdocstrings."""
    if page.file.src_uri != "api.md":
        return markdown
    parts = re.split(r"^(##+ .*)$", markdown, flags=re.MULTILINE)
    found = ["# API\n\nMade from the docstrings.\n"]
    for heading in parts[1::2]:
        name = re.fullmatch(r"### `(\w+)`", heading)
        found.append(f"::: lightning_freeze.{name[1]}\n" if name else f"{heading}\n")
    return "\n".join(found)
