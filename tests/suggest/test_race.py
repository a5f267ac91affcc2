"""Successive halving on numbers that are known, and plans by budget."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from lightning_freeze import PlanError
from lightning_freeze.suggest.budget import Budget
from lightning_freeze.suggest.candidates import Candidate
from lightning_freeze.suggest.race import PLANS, Race, Round, plan
from lightning_freeze.suggest.trial import Measured

WAYS = ["decay", "head", "all", "gradual", "last half", "LP-FT", "slices", "last stage"]
ENTERED = [Candidate(way, "", 1e-3) for way in WAYS]
TRUE = {way: 0.9 - 0.05 * place for place, way in enumerate(reversed(WAYS))}  # the last to enter is the best


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def race(seconds: float = 1e9, broken: str = "") -> tuple[Race, list[tuple[str, float, int, float]]]:
    clock, ran = Clock(), list[tuple[str, float, int, float]]()

    def run(candidate: Candidate, fold: int, share: float) -> Measured:
        clock.now += share
        ran.append((candidate.way, candidate.rate, fold, share))
        if candidate.way == broken:
            return Measured(math.nan, 1.0, 0, 0.0, "RuntimeError: out of memory")
        off = 0.0 if candidate.rate == 1e-3 else 0.2
        return Measured(TRUE[candidate.way] - off + 0.001 * fold, share, 10, 0.1)

    return Race(run, lambda value: value, Budget(seconds, clock=clock)), ran


def test_the_best_comes_through_and_the_kept_ones_run_with_it() -> None:
    found, ran = race()
    found.go([Round(8, 0.25, 1), Round(4, 0.5, 2), Round(2, 1.0, 3)], ENTERED, kept=("head", "all"))
    last, folds = found.comparable(1.0)
    assert [candidate.way for candidate in last] == ["last stage", "slices", "all", "head"]
    assert folds == [0, 1, 2]
    assert {fold for *_, fold, share in ran if share == 0.25} == {0}


def test_neighbours_in_rate_of_the_leaders_fill_what_is_free() -> None:
    found, ran = race()
    found.go([Round(8, 0.25, 1), Round(6, 1.0, 1)], ENTERED, kept=())
    long = [(way, rate) for way, rate, _, share in ran if share == 1.0]
    assert long[:4] == [(way, 1e-3) for way in ("last stage", "slices", "LP-FT", "last half")]
    assert long[4:] == [("last stage", 3e-4), ("last stage", 3e-3)]


def test_who_breaks_down_leaves_the_race_and_is_named() -> None:
    found, ran = race(broken="slices")
    found.go([Round(8, 0.25, 2), Round(2, 1.0, 1)], ENTERED, kept=())
    assert found.errors == {Candidate("slices", "", 1e-3): "RuntimeError: out of memory"}
    assert [way for way, *_ in ran].count("slices") == 1


def test_the_race_ends_with_the_budget_and_compares_what_ran_alike() -> None:
    found, _ = race(seconds=3.6)  # 8 quarters, then one fold of two and a part of the next
    found.go([Round(8, 0.25, 1), Round(3, 0.5, 2)], ENTERED, kept=())
    share = found.decisive
    assert share == 0.5
    last, folds = found.comparable(share)
    assert folds == [0]
    assert last[0].way == "last stage"


def test_a_single_long_run_does_not_decide() -> None:
    found, _ = race(seconds=2.5)
    found.go([Round(8, 0.25, 1), Round(3, 1.0, 2)], ENTERED, kept=())
    assert found.decisive == 0.25


def test_one_that_diverges_is_last_and_not_shown() -> None:
    found, _ = race()
    found.values = {(ENTERED[0], 1.0): {0: math.nan}, (ENTERED[1], 1.0): {0: 0.5}}
    assert found.comparable(1.0) == ([ENTERED[1]], [0])


# ---- plans


def test_a_larger_budget_never_buys_less() -> None:
    costs = [sum(one.runs for one in plan(runs, 5, 40, 100)[0]) for runs in (2, 4, 8, 12, 20, 40, 100)]
    assert all(one <= other for one, other in pairwise(costs))
    assert all(cost <= runs for cost, runs in zip(costs, (2, 4, 8, 12, 20, 40, 100), strict=True))


def test_plans_are_ordered_from_rich_to_poor() -> None:
    costs = [sum(one.runs for one in rounds) for rounds in PLANS]
    assert costs == sorted(costs, reverse=True)


def test_no_plan_has_more_folds_or_candidates_than_there_are() -> None:
    rounds, _ = plan(1000, 3, 7, 100)
    assert max(one.folds for one in rounds) == 3
    assert max(one.entries for one in rounds) == 7


def test_little_time_makes_shorter_runs_and_says_so() -> None:
    rounds, remark = plan(1.0, 5, 20, 1000)
    assert rounds[-1].share < 0.5
    assert "runs of 29% of the configured length" in remark


def test_very_little_time_makes_a_hint_and_says_so() -> None:
    rounds, remark = plan(0.1, 5, 20, 100)
    assert len(rounds) == 1
    assert "a hint, not a measurement" in remark


def test_no_time_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"the budget pays for 1.0 optimizer steps, and a single candidate needs 4"):
        plan(0.01, 5, 20, 100)
