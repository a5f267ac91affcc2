"""Steps that are not worth looking up are left alone; what they give is the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.cache import worth
from lightning_freeze.cache.memo import FrozenMemo
from lightning_freeze.cache.row_store import Storage
from lightning_freeze.cache.worth import Clock, Worth


def looked(own: Worth, steps: int, found: int = 0) -> list[int]:
    return [step for step in range(steps) if not own.skips() and own.after(8, found) is None]


def test_steps_that_find_nothing_are_left_alone_more_and_more_and_a_found_row_ends_it() -> None:
    own = Worth()
    own.epoch_start(rows=True)
    assert len(looked(own, 1000)) < 16
    own.epoch_start(rows=True)
    assert looked(own, 6) == [0, 1, 2, 3, 5]
    own.after(8, found=1)
    assert looked(own, 4) == [2, 3]  # the two that were to be left alone, and all after them
    assert looked(own, 50, found=8) == [*range(50)]


def test_the_first_epoch_is_looked_at_whole() -> None:
    own = Worth()
    own.epoch_start(rows=False)
    assert looked(own, 100) == [*range(100)]


@pytest.mark.parametrize(
    ("share", "served", "left"), [(3.0, False, True), (1.5, False, False), (3.0, True, True), (1.1, True, False)]
)
def test_a_frozen_part_that_is_faster_than_looking_up_is_left_alone(
    share: float, served: bool, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worth, "RATIOS", (2.0, 1.25))
    own = Worth()
    own.timed(9.0, 1e-3, False)  # the first steps take longer
    for _ in range(20):
        own.timed(share * 1e-3, 0.0 if served else 1e-3, served)
    assert [own.skips() for _ in range(40)].count(True) == (37 if left else 0)
    assert own.why == ("what is frozen takes 1.00 ms per step, and looking it up 3.00 ms" if left else "")


def test_time_belongs_to_who_had_the_turn() -> None:
    clock = Clock()
    assert [clock.turn(who) for who in ("own", "computing", "own", "step")] == ["step", "own", "computing", "own"]
    assert all(seconds > 0 for seconds in clock.seconds.values())


@pytest.mark.parametrize("ratio", [0.0, 1e9])
def test_a_small_frozen_part_is_said_and_left_alone_until_another_one_is_frozen(
    ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worth, "RATIOS", (ratio, ratio))
    said: list[str] = []
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)).requires_grad_(False)
    model[2].requires_grad_(True)
    memo = FrozenMemo(model, Storage(1 << 20), say=said.append)

    watched: list[bool] = []

    def step(batch: Tensor) -> Tensor:
        watched.append("forward" in vars(model[0]))
        loss: Tensor = model(batch).sum()
        return loss

    batch = torch.randn(4, 8)
    assert len({memo.run(step, batch).item() for _ in range(40)}) == 1
    small = ratio == 0.0
    assert sum("waits until something else is frozen" in text for text in said) == small
    assert watched[:10] == [True] * 10
    assert watched[-10:] == [not small] * 10
    model[1].requires_grad_(True)
    for _ in range(20):
        memo.run(step, batch)
    assert any(watched[-20:])
    memo.close()
