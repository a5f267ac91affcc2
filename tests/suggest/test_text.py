"""The text fits a terminal of 80 columns and holds what was measured."""

from __future__ import annotations

import re
from dataclasses import replace

from suggestions import CLEAR, LOOK

from lightning_freeze.preview.step_cost import Cost
from lightning_freeze.suggest.candidates import Candidate
from lightning_freeze.suggest.look import StageLook
from lightning_freeze.suggest.text import text

ROWS = [
    StageLook("head", 1_000, 0.5, 1e-3, 20.0),
    StageLook("model.encoder.layers.3..model.encoder.layers.11", 123_456_789, 0.1, 1e-5, 3.0),
    StageLook("stem", 10, 0.0, 0.0, 0.0),
]
COSTS = {frozenset(range(depth)): Cost(1, 1, 1, 1, 1, 0.1 * depth) for depth in (1, 2, 3)}


def said() -> str:
    dropped = [(Candidate("first third", "train", 1e-4), "0.100 after 25% of a run")] * 12
    found = replace(CLEAR, look=replace(LOOK, rows=ROWS, costs=COSTS), dropped=dropped, complete=False)
    return text(found)


def test_no_line_of_it_is_wider_than_80_columns() -> None:
    tables = said().partition("To use it")[0]
    assert max(map(len, tables.splitlines())) <= 80


def test_candidates_with_interval_cost_and_memory() -> None:
    assert re.search(r"decay, BatchNorm eval +0\.001 +0\.810 ± 0\.025 +3 +200 ms 80% +\?", said())
    assert re.search(r"head +1,000 +33%", said())


def test_what_was_stopped_and_what_was_left_out_is_said() -> None:
    flat = " ".join(said().split())
    assert "Stopped before the end of the plan" in flat
    assert "Left out on the way (4 more)" in flat
    assert "class_path: lightning_freeze.LayerwiseLR" in flat
