"""A race of a few runs, whatever the machine is doing beside it."""

from __future__ import annotations

import pytest

from lightning_freeze.suggest import race


@pytest.fixture
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "PLANS", ((race.Round(4, 0.5, 1), race.Round(2, 1.0, 2)),))
