"""Run by test_worked_examples.py in two real processes: the example of task_steps.py, its counts as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import task_steps


def main(folder: str) -> None:
    found = {optimizer: [count.moved, count.counted] for optimizer, count in task_steps.main(2, steps=12).items()}
    Path(folder, f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(found))
