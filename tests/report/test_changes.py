"""The line at a change: when, why, what, and how much trains now."""

from __future__ import annotations

import pytest
from layered import Layered, running

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR
from lightning_freeze.engine.declarations import Change
from lightning_freeze.report.changes import change_line
from lightning_freeze.schedule.moments import Progress


def test_it_names_the_stage_the_moment_and_the_share() -> None:
    with running([GradualUnfreeze(["head", "layers", "stem"])]) as run:
        change = run.reconcile(Progress(1, 7, 100))
        total = sum(parameter.numel() for parameter in Layered().parameters())
        part = total - sum(parameter.numel() for parameter in Layered().stem.parameters())
        assert change_line(run.view, change) == (
            f"epoch 1, step 7: unfrozen layers; {part} parameters ({part / total:.1%}) train"
        )


def test_both_directions_stand_in_one_line() -> None:
    with running([FreezeLayers("layers.0", 1), FreezeLayers("layers.1", 0, 1)]) as run:
        change = run.reconcile(Progress(1, 7, 100))
        line = change_line(run.view, change)
        assert line.startswith("epoch 1, step 7: unfrozen ")
        assert "; frozen " in line
        assert "layers.1" in line.partition("; frozen ")[0]


def test_nothing_that_trains_or_stops_is_no_line() -> None:
    with running([GradualUnfreeze(["head", "layers"]), BatchNormEval()]) as run:
        assert change_line(run.view, Change(held=("layers.0.1",))) == ""


def test_a_part_of_a_stage_is_counted() -> None:
    with running([GradualUnfreeze(["head", "layers"])]) as run:
        assert "frozen 2 of 12 tensors of layers;" in change_line(
            run.view, Change(frozen=("layers.0.0.weight", "layers.0.0.bias"))
        )


@pytest.mark.parametrize(
    ("names", "text"),
    [(("stem.weight",), "1 parameters (stem.weight);"), (("stem.weight", "stem.bias"), "(stem.weight to stem.bias);")],
)
def test_without_stages_the_first_and_the_last_are_named(names: tuple[str, ...], text: str) -> None:
    with running([LayerwiseLR(multipliers={"head": 2.0})]) as run:
        assert text in change_line(run.view, Change(unfrozen=names))


def test_the_division_with_the_fewest_stages_has_the_word() -> None:
    policies = [GradualUnfreeze(["head", "layers.2", "layers.1", "layers.0"]), LayerwiseLR(0.5, stages=["head", "*"])]
    with running(policies) as run:
        names = tuple(name for name in run.index.parameters if name.startswith("layers"))
        assert "unfrozen 12 of 14 tensors of rest;" in change_line(run.view, Change(unfrozen=names))
