"""Suggestions from numbers that are made up."""

from __future__ import annotations

from typing import Any

from lightning_freeze import Stage
from lightning_freeze.suggest import Suggestion
from lightning_freeze.suggest.candidates import Candidate
from lightning_freeze.suggest.look import Look
from lightning_freeze.suggest.metric import Metric
from lightning_freeze.suggest.suggestion import Entry

STAGES = [Stage("head", "head"), Stage("body", ["body", "!body.0"]), Stage("stem", "body.0")]
LOOK = Look(STAGES, [], has_norm=True, base=1e-3, step=0.1)


def entry(way: str, values: list[float], step: float, rate: float = 1e-3) -> Entry:
    return Entry(Candidate(way, "eval", rate), dict(enumerate(values)), 1.0, step, None)


def suggestion(*entries: Entry, mode: str = "max", **more: Any) -> Suggestion:
    return Suggestion(list(entries), LOOK, Metric("val", mode), **more)


CLEAR = suggestion(
    entry("decay", [0.80, 0.81, 0.82], 0.2),
    entry("all", [0.70, 0.72, 0.71], 0.25),
    entry("head", [0.5, 0.5, 0.51], 0.1),
)
