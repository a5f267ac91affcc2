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


def test_windows_in_steps_open_and_close_within_an_epoch() -> None:
    seen = Spy("on_train_batch_end", stages_training)
    fit(
        Net(),
        [FreezeLayers("mid", 1, 4, unit="step"), FreezeLayers("stem", 0, 3, unit="step"), seen],
        epochs=1,
        steps=6,
    )
    assert seen.seen == ["hm", "h", "h", "hs", "hms", "hms"]


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
