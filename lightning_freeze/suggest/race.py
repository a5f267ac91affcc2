"""Successive halving: all candidates in a short run on one fold, then the better ones longer and on more folds.

Source: Jamieson and Talwalkar (2016), arXiv:1502.07943.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lightning_freeze.errors import PlanError
from lightning_freeze.suggest.budget import Budget
from lightning_freeze.suggest.candidates import Candidate, neighbours
from lightning_freeze.suggest.trial import Measured

Run = Callable[[Candidate, int, float], Measured]  # candidate, fold, share of the user's run
_FEWEST = 4  # minimum number of optimizer steps of a meaningful run


@dataclass(frozen=True)
class Round:
    """One round: a number of candidates, each on a number of folds, for a share of the user's run."""

    entries: int
    share: float
    folds: int

    @property
    def runs(self) -> float:
        """The cost of the round, in runs of the user's length."""
        return self.entries * self.share * self.folds


# From expensive to cheap; the most expensive affordable plan is used.
PLANS = (
    (Round(26, 0.25, 2), Round(12, 0.5, 3), Round(6, 1.0, 5)),
    (Round(16, 0.25, 1), Round(8, 0.5, 2), Round(4, 1.0, 5)),
    (Round(14, 0.25, 1), Round(6, 0.5, 1), Round(4, 1.0, 3)),
    (Round(10, 0.25, 1), Round(4, 1.0, 2)),
    (Round(8, 0.25, 1), Round(3, 1.0, 1)),
    (Round(6, 0.25, 1), Round(2, 1.0, 1)),
)


def plan(runs: float, folds: int, entries: int, steps: int) -> tuple[list[Round], str]:
    """The affordable rounds, and remarks about them for the user.

    Args:
        runs: number of runs of the user's length that the budget allows.
        folds: number of folds of the data.
        entries: number of candidates.
        steps: optimizer steps of a run of the user's length.

    Raises:
        PlanError: the budget is too small for one candidate.
    """
    for rounds in PLANS:
        fitted = [Round(min(one.entries, entries), one.share, min(one.folds, folds)) for one in rounds]
        if sum(one.runs for one in fitted) <= runs:
            return fitted, ""
    poorest = [Round(min(one.entries, entries), one.share, 1) for one in PLANS[-1]]
    scale = runs / sum(one.runs for one in poorest)
    if steps * scale * 0.25 >= _FEWEST:
        scaled = [Round(one.entries, one.share * scale, 1) for one in poorest]
        return scaled, f"The budget pays for runs of {scale:.0%} of the configured length, so rates may come out high."
    affordable = int(runs * steps / _FEWEST)
    if affordable < 1:
        raise PlanError(
            f"the budget pays for {max(0.0, runs) * steps:.1f} optimizer steps, and a single candidate needs "
            f"{_FEWEST}.\n  Give a larger --budget"
        )
    share = runs / min(affordable, 3, entries)
    return [Round(min(affordable, 3, entries), min(1.0, share), 1)], (
        f"The budget pays for {min(affordable, 3, entries)} candidates and {max(1, round(steps * share))} optimizer "
        "steps of each: a hint, not a measurement."
    )


@dataclass
class Race:
    """Measurements of the candidates, by share of a run and fold.

    Args:
        run: measures one candidate.
        merit: converts a value of the metric to a number for which larger is better.
        budget: the budget that ends the race.
    """

    run: Run
    merit: Callable[[float], float]
    budget: Budget
    values: dict[tuple[Candidate, float], dict[int, float]] = field(default_factory=dict)
    errors: dict[Candidate, str] = field(default_factory=dict)
    seconds: dict[Candidate, float] = field(default_factory=dict)  # of an optimizer step

    def go(self, rounds: Sequence[Round], entered: Sequence[Candidate], kept: Sequence[str]) -> None:
        """Run the rounds within the budget.

        Args:
            rounds: the rounds from `plan`.
            entered: the candidates, the most promising first.
            kept: ways whose best candidate is always in the last round.
        """
        here = list(entered[: rounds[0].entries])
        for place, one in enumerate(rounds):
            if place:
                here = self._next(here, rounds[place - 1].share, one, kept if one is rounds[-1] else ())
            for fold in range(one.folds):
                for candidate in here:
                    if self.budget.left <= 0:
                        return
                    self.measure(candidate, fold, one.share)
                here = [candidate for candidate in here if candidate not in self.errors]

    def measure(self, candidate: Candidate, fold: int, share: float) -> None:
        found = self.run(candidate, fold, share)
        if found.error:
            self.errors[candidate] = found.error
            return
        self.values.setdefault((candidate, share), {})[fold] = found.value
        self.seconds[candidate] = found.step_seconds or self.seconds.get(candidate, 0.0)

    def _next(self, here: Sequence[Candidate], share: float, coming: Round, kept: Sequence[str]) -> list[Candidate]:
        """The best candidates, and their neighbours in rate if there is room."""
        ranked = self.ranked(share)
        best = ranked[: max(1, coming.entries - (2 if coming.entries > 4 else 0))]
        known = {*here, *best}
        near = [one for leader in ranked[:2] for one in neighbours(leader) if one not in known]
        best += near[: max(0, coming.entries - len(best))]
        for way in kept:
            if not any(candidate.way == way for candidate in best):
                best += self._best_of(way)
        return best

    def _best_of(self, way: str) -> list[Candidate]:
        """The best candidate of a way in its longest runs."""
        for share in sorted({share for candidate, share in self.values if candidate.way == way}, reverse=True):
            return [candidate for candidate in self.ranked(share) if candidate.way == way][:1]
        return []

    def ranked(self, share: float) -> list[Candidate]:
        """The candidates with runs of this share, best mean first."""
        found = {candidate: values for (candidate, of), values in self.values.items() if of == share}
        return sorted(found, key=lambda candidate: -self._mean(found[candidate]))

    def _mean(self, values: dict[int, float]) -> float:
        merits = [self.merit(value) for value in values.values()]
        return statistics.fmean(merits) if all(map(math.isfinite, merits)) else -math.inf

    @property
    def decisive(self) -> float | None:
        """The longest share with at least two measured candidates, else the longest share."""
        shares = sorted({share for _, share in self.values}, reverse=True)
        several = [share for share in shares if sum(of == share for _, of in self.values) > 1]
        return next(iter([*several, *shares]), None)

    def comparable(self, share: float) -> tuple[list[Candidate], list[int]]:
        """The candidates, best first, and the folds that all of them ran on, so that the comparison is fair."""
        folds = set.intersection(*(set(values) for (_, of), values in self.values.items() if of == share))
        merits = {
            candidate: self._mean({fold: values[fold] for fold in folds})
            for (candidate, of), values in self.values.items()
            if of == share
        }
        ranked = sorted(merits, key=lambda candidate: -merits[candidate])
        sound = [candidate for candidate in ranked if math.isfinite(merits[candidate])]
        return sound or ranked[:1], sorted(folds)
