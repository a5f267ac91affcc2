"""Time that is spent and left."""

from __future__ import annotations

from lightning_freeze.suggest.budget import Budget


def test_it_counts_on_from_what_was_spent_before() -> None:
    now = [100.0]
    budget = Budget(60.0, spent=20.0, clock=lambda: now[0])
    assert (budget.spent, budget.left) == (20.0, 40.0)
    now[0] = 130.0
    assert (budget.spent, budget.left) == (50.0, 10.0)
