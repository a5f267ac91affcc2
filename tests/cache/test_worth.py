"""Steps are skipped more and more where no row comes again."""

from __future__ import annotations

from lightning_freeze.cache.worth import Worth


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
