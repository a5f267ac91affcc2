"""Runs scripts in processes that have torch and torchmetrics and no Lightning yet: forked, so that a start is quick."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import torchmetrics  # noqa: F401 - three quarters of the time that `import lightning` takes


def forked(name: str, source: str, folder: Path) -> int:
    """Run a script to its end; what it prints is in a file. Returns the process."""
    child = os.fork()
    if child:
        return child
    out = os.open(folder / f"{name}.out", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    status = 1
    try:
        exec(compile(source, name, "exec"), {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(folder: str) -> None:
    """Run the scripts of `scripts.json`, and write their exit statuses to `statuses.json`."""
    before = {name for name in sys.modules if name.partition(".")[0] in ("lightning", "pytorch_lightning")}
    assert not before, before
    scripts = json.loads(Path(folder, "scripts.json").read_text())
    statuses = {}
    for name, source in scripts.items():
        _, status = os.waitpid(forked(name, source, Path(folder)), 0)
        statuses[name] = os.waitstatus_to_exitcode(status)
    Path(folder, "statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(*sys.argv[1:])
