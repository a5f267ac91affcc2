"""Check every case that is installed, and write the table of the page.

    python tests/wild/report.py [--only TEXT]

Writes found.json beside this file, and the table in examples/docs/wild.md from it.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

from wild_cases import CASES, missing
from wild_checks import CHECKS, KNOWN, check, is_bad

HERE = Path(__file__).parent
FOUND, PAGE = HERE / "found.json", HERE.parents[1] / "examples" / "docs" / "wild.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
PACKAGES = {"pytorch_forecasting": "pytorch-forecasting", "scvi": "scvi-tools", "lightning_uq_box": "lightning-uq-box"}


def table(found: dict[str, dict[str, str]]) -> str:
    """The rows as Markdown, and a sentence for each that does not hold."""
    lines = ["| Module and entry point | Version | Trainer | " + " | ".join(CHECKS) + " |"]
    lines.append("|" + " --- |" * (3 + len(CHECKS)))
    for name, row in found.items():
        cells = [row.get(key, "") for key in CHECKS]
        marked = [f"**{cell}**" if key in is_bad(row) else cell for key, cell in zip(CHECKS, cells, strict=True)]
        lines.append("| " + " | ".join([name, row["version"], row["trainer"], *marked]) + " |")
    reasons = [f"- {name}: {KNOWN[name][1]}." for name in found if name in KNOWN]
    return "\n".join([*lines, "", *reasons])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    only = parser.parse_args().only
    found: dict[str, dict[str, str]] = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    for name, (package, trainer, _) in CASES.items():
        if only in name and not missing(name):
            row = {"version": version(PACKAGES.get(package, package)), "trainer": trainer, **check(name)}
            found[name] = row
            print(name, is_bad(row) or "all right", flush=True)
            FOUND.write_text(json.dumps(found, indent=1) + "\n")
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")


if __name__ == "__main__":
    main()
