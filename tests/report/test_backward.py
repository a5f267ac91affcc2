"""Frozen layers behind something that trains still cost their backward pass, and the table says so."""

from __future__ import annotations

from layered import Layered, running

from lightning_freeze import FreezeLayers, GradualUnfreeze
from lightning_freeze.report.backward import backward_remarks
from lightning_freeze.schedule.moments import Progress


def test_frozen_layers_behind_a_trainable_one_are_counted_and_both_are_named() -> None:
    with running([FreezeLayers("layers.1")]) as run:
        assert backward_remarks(run.view) == [
            "The backward pass still runs through 4 frozen parameters (from layers.1.0.weight on), because stem before "
            "them trains."
        ]


def test_a_frozen_prefix_costs_nothing() -> None:
    with running([FreezeLayers(["stem", "layers"])]) as run:
        assert backward_remarks(run.view) == []


def test_the_order_is_that_of_the_stages_where_there_are_any() -> None:
    with running([GradualUnfreeze(["head", "layers", "stem"])]) as run:
        assert backward_remarks(run.view) == []
    with running([GradualUnfreeze(["stem", "layers", "head"])]) as run:  # the head lies before the stem, they say
        assert backward_remarks(run.view) == []


def test_a_second_policy_that_freezes_in_a_stage_is_seen() -> None:
    policies = [GradualUnfreeze(["head", "layers"]), FreezeLayers("layers.1")]
    with running(policies, progress=Progress(1, 5, 100)) as run:
        (said,) = backward_remarks(run.view)
        assert "through 4 frozen parameters (from layers.1.0.weight on), because layers.0" in said


def test_what_never_trained_is_not_counted() -> None:
    model = Layered()
    model.head.requires_grad_(False)
    with running([FreezeLayers("layers.2")], model) as run:
        (said,) = backward_remarks(run.view)
        assert "through 4 frozen parameters (from layers.2.0.weight on)" in said
