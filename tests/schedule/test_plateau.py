"""A metric trigger: the patience of EarlyStopping, started afresh at each stage."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping

from lightning_freeze.schedule.plateau import Plateau

VALUES = st.lists(st.integers(-20, 20).map(lambda k: k / 10), max_size=30)


@given(VALUES, st.integers(1, 4), st.sampled_from([0.0, 0.1, 0.3, 0.05]), st.sampled_from(["min", "max"]))
def test_patience_is_that_of_early_stopping(values: list[float], patience: int, min_delta: float, mode: str) -> None:
    stopping = EarlyStopping("x", min_delta=min_delta, patience=patience, mode=mode)
    plateau = Plateau()
    for epoch, value in enumerate(values):
        metric = torch.tensor(value)
        stops, _ = stopping._evaluate_stopping_criteria(metric)
        plateau.check(metric if mode == "min" else -metric, epoch, 0, patience, min_delta)
        assert stops == (0 in plateau.ends), (epoch, values)
        assert plateau.wait == stopping.wait_count
        if stops:
            break


def feed(plateau: Plateau, values: list[float], epoch: int, stage: int = 0, patience: int = 2) -> list[bool]:
    return [plateau.check(torch.tensor(value), epoch, stage, patience, 0.0) for value in values]


def test_a_trigger_acts_at_the_start_of_the_next_epoch_and_later_checks_of_its_epoch_do_not_count() -> None:
    plateau = Plateau()
    assert feed(plateau, [1.0, 1.0, 1.0, 0.5], epoch=3) == [True, False, False, False]
    assert plateau.ends == {0: 3}
    assert plateau.best == 1.0
    assert [plateau.started(epoch, [None] * 3) for epoch in (2, 3, 4, 9)] == [1, 1, 2, 2]


def test_best_value_and_counter_start_afresh_at_each_stage() -> None:
    plateau = Plateau()
    feed(plateau, [0.1, 0.2, 0.2], epoch=0)
    assert feed(plateau, [5.0, 5.0], epoch=1, stage=1) == [True, False]
    assert plateau.wait == 1
    assert 1 not in plateau.ends
    feed(plateau, [5.0], epoch=2, stage=1)
    assert plateau.started(3, [None] * 4) == 3


def test_a_stage_ends_after_its_most_epochs_counted_from_its_own_start() -> None:
    assert [Plateau().started(epoch, [3] * 4) for epoch in range(10)] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    plateau = Plateau()
    feed(plateau, [1.0, 1.0, 1.0], epoch=0)
    assert [plateau.started(epoch, [3] * 4) for epoch in range(8)] == [1, 2, 2, 2, 3, 3, 3, 4]


def test_nothing_improves_on_nan() -> None:
    plateau = Plateau()
    assert feed(plateau, [math.nan, math.nan], epoch=0) == [False, False]
    assert plateau.ends == {0: 0}


def test_the_record_is_plain_and_complete() -> None:
    plateau = Plateau()
    feed(plateau, [1.0, 2.0], epoch=0)
    record = plateau.record()
    assert record == {"ends": {}, "stage": 0, "best": 1.0, "wait": 1}
    assert Plateau(**record) == plateau


def test_each_stage_may_have_a_limit_of_its_own() -> None:
    assert [Plateau().started(epoch, [2, None, 1, 5]) for epoch in range(5)] == [1, 1, 2, 2, 2]
