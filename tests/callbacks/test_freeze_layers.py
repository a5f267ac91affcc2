"""FreezeLayers keeps layers frozen for a part of the run."""

from __future__ import annotations

import pytest
from helpers import (
    STAGES,
    Net,
    Spy,
    each_epoch,
    fit,
    stages_training,
)

from lightning_freeze import FreezeLayers, LayerwiseLR
from lightning_freeze.schedule.moments import Moment, Progress


def test_windows_in_steps_open_and_close_within_an_epoch() -> None:
    seen = Spy("on_train_batch_end", stages_training)
    fit(
        Net(),
        [FreezeLayers("mid", 1, 4, unit="step"), FreezeLayers("stem", 0, 3, unit="step"), seen],
        epochs=1,
        steps=6,
    )
    assert seen.seen == ["hm", "h", "h", "hs", "hms", "hms"]


def test_the_next_start_is_the_end_of_the_window_until_it_is_reached() -> None:
    window = FreezeLayers("mid", 1, 3)
    assert [window.next_start(Progress(epoch)) for epoch in (0, 2, 3)] == [Moment(3, "epoch"), Moment(3, "epoch"), None]
    assert FreezeLayers("mid", 1).next_start(Progress(0)) is None


def test_the_end_of_a_run_tells_what_had_not_begun_or_ended_by_then() -> None:
    assert FreezeLayers("mid", unit="step").warnings(Progress(0, 0)) == []
    (late,) = FreezeLayers("mid", 3, unit="step").warnings(Progress(0, 3))
    assert late.endswith("after 3 steps, and mid was to be frozen from step 3 on")
    assert FreezeLayers("mid", 3, unit="step").warnings(Progress(0, 4)) == []
    (open_,) = FreezeLayers("mid", stop=3).warnings(Progress(1, 9))
    assert open_.endswith("after 2 epochs, and mid was to be unfrozen in epoch 3")
    assert FreezeLayers("mid", stop=3).warnings(Progress(2, 9)) == []


def test_several_instances_of_one_class_add_up() -> None:
    seen = each_epoch()
    rates = Spy("on_train_start", lambda running, _: {g["name"]: g["lr"] for g in running.optimizers[0].param_groups})
    callbacks = [
        FreezeLayers("stem", 0, 2),
        FreezeLayers("stem", 1, 3),
        FreezeLayers("mid", 3),
        LayerwiseLR(0.5, stages=STAGES),
        LayerwiseLR(multipliers={"mid": 10.0}),
        LayerwiseLR(multipliers={"*": 3.0, "head": 1.0}),
    ]
    fit(Net(), [*callbacks, seen, rates], epochs=4)
    assert seen.seen == ["hm", "hm", "hm", "hs"]
    assert rates.seen == [pytest.approx({"stem": 0.075, "mid": 1.5, "head": 0.1})]
