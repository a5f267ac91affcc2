"""Which candidates enter, in what order, at what rates."""

from __future__ import annotations

from lightning_freeze.suggest.candidates import ORDER, Candidate, entries, neighbours, on_scale


def test_rates_lie_on_the_scale_of_one_and_three() -> None:
    assert [on_scale(rate) for rate in (1e-3, 2e-3, 4.5e-4, 8e-5)] == [1e-3, 3e-3, 3e-4, 1e-4]
    assert neighbours(Candidate("all", "", 1e-3)) == [Candidate("all", "", 3e-4), Candidate("all", "", 3e-3)]


def test_every_way_enters_once_before_any_enters_with_another_rate() -> None:
    found = entries({("all", ""): 5e-4, ("head", ""): 0.05}, has_norm=False, stages=6)
    first = found[: len(ORDER)]
    assert [candidate.way for candidate in first] == list(ORDER)
    assert {candidate.norm for candidate in found} == {""}
    rates = {candidate.way: candidate.rate for candidate in first}
    assert rates["all"] == 1e-4
    assert rates["decay"] == 3e-4
    assert rates["head"] == 1e-2
    assert len(set(found)) == len(found)


def test_a_mode_without_a_range_of_rates_does_not_enter() -> None:
    both = {("all", "eval"): 5e-4, ("head", "eval"): 0.05}
    assert {candidate.norm for candidate in entries(both, has_norm=True, stages=6)} == {"eval"}
    both["all", "train"] = 5e-3
    assert {candidate.norm for candidate in entries(both, has_norm=True, stages=6)} == {"eval", "train"}


def test_with_one_stage_there_is_nothing_to_freeze() -> None:
    found = entries({("all", ""): 5e-4, ("head", ""): 0.05}, has_norm=False, stages=1)
    assert {candidate.way for candidate in found} == {"all"}
