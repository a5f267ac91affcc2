"""Which candidates enter, in what order, at what rates."""

from __future__ import annotations

from lightning_freeze.suggest.candidates import ORDER, Candidate, entries, neighbours, on_scale


def test_rates_lie_on_the_scale_of_one_and_three() -> None:
    assert [on_scale(rate) for rate in (1e-3, 2e-3, 4.5e-4, 8e-5)] == [1e-3, 3e-3, 3e-4, 1e-4]
    assert neighbours(Candidate("all", "", 1e-3)) == [Candidate("all", "", 3e-4), Candidate("all", "", 3e-3)]


def test_every_way_enters_once_before_any_enters_with_another_rate() -> None:
    found = entries(5e-4, has_norm=False, stages=6)
    first = found[: len(ORDER)]
    assert [candidate.way for candidate in first] == list(ORDER)
    assert {candidate.norm for candidate in found} == {""}
    rates = {candidate.way: candidate.rate for candidate in first}
    assert (rates["all"], rates["decay"], rates["head"]) == (1e-4, 3e-4, 3e-3)
    assert len(set(found)) == len(found)


def test_both_modes_enter_where_there_are_statistics() -> None:
    found = entries(5e-4, has_norm=True, stages=6)
    rates = {(candidate.way, candidate.norm): candidate.rate for candidate in reversed(found)}
    assert rates["all", "eval"] < rates["all", "train"]
    assert {candidate.norm for candidate in found} == {"eval", "train"}


def test_with_one_stage_there_is_nothing_to_freeze() -> None:
    assert {candidate.way for candidate in entries(5e-4, has_norm=False, stages=1)} == {"all"}
