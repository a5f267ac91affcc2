"""Run a search: a first look, a range test, races, and the suggestion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lightning_freeze.errors import PlanError
from lightning_freeze.suggest.budget import Budget
from lightning_freeze.suggest.candidates import Candidate, entries
from lightning_freeze.suggest.look import Look, look
from lightning_freeze.suggest.race import Race, Round, plan
from lightning_freeze.suggest.record import Record
from lightning_freeze.suggest.suggestion import Entry, Suggestion, dropped_of, memory_of
from lightning_freeze.suggest.sweep import sweep
from lightning_freeze.suggest.trial import Measured, Task, trial

Show = Callable[[str, float], None]  # current activity, and spent fraction of the budget
KEPT = ("head", "all")  # always in the last round: the cheapest way, and full fine-tuning
_RANGE_SHARE = 0.2  # maximum fraction of the budget
_RANGE_STEPS = 30
# Where the loss of full fine-tuning turned up with Adam on the tasks of benchmarks/grid.py. Batches of a few examples
# make a range test noisy, so it moves the rates by no more than a factor of 3 from here; the race may go on from there.
_TYPICAL = 5e-4
_OVERHEAD = 1.3  # ratio of the time of a trial and of its steps: copying, validation


@dataclass
class Search:
    """One search, from the first look to the suggestion.

    Args:
        task: the module and data to train.
        budget: time budget in seconds.
        record: stored measurements, which are not repeated.
        show: called with the progress.
    """

    task: Task
    budget: Budget
    record: Record
    show: Show = lambda text, part: None
    remarks: list[str] = field(default_factory=list)

    def go(self) -> Suggestion:
        """Search until the plan is complete, the budget is spent, or Ctrl-C is pressed.

        Raises:
            PlanError: the budget is too small for one candidate, or every candidate failed.
        """
        self._tell("look at stages and gradients")
        seen = look(self.task)
        self.task.base = seen.base
        self.step = seen.step or self.budget.spent / 4
        race = Race(lambda *one: self._trial(seen, *one), self.task.metric.merit, self.budget)
        complete = True
        try:
            candidates = entries(self._turning(seen), seen.has_norm, len(seen.stages))
            rounds, remark = plan(self._runs(), self.task.folds.count, len(candidates), self.task.run_steps)
            self.remarks += [remark] if remark else []
            race.go(rounds, candidates, KEPT)
            self._more_folds(race, rounds)
        except KeyboardInterrupt:
            complete = False
        return self._said(seen, race, complete)

    def _tell(self, what: str) -> None:
        self.show(what, min(1.0, self.budget.spent / self.budget.seconds))

    def _runs(self) -> float:
        """The number of whole runs of full fine-tuning that the rest of the budget allows."""
        return self.budget.left / (self.task.run_steps * self.step * _OVERHEAD + 0.3)

    # ---- rates

    def _turning(self, seen: Look) -> float:
        """The rate at which the loss of full fine-tuning begins to rise, with held statistics if that learns at all."""
        for norm, factor in (("eval", 1.0), ("train", 1 / 5)) if seen.has_norm else (("", 1.0),):
            dear = _RANGE_STEPS * self.step > _RANGE_SHARE * self.budget.left
            if dear and self.record.get("sweep", "all", norm) is None:
                break
            self._tell("range of rates")
            if (turning := self._sweep(seen, "all", norm)) is not None:
                return _near_typical(factor * turning) if seen.adam else factor * turning
        self.remarks.append(
            f"No range test told where the rates end, so they are taken around the configured {seen.base:g}."
        )
        return _near_typical(5 * seen.base) if seen.adam else 5 * seen.base

    def _sweep(self, seen: Look, way: str, norm: str) -> float | None:
        kept = self.record.get("sweep", way, norm)
        if kept is None:
            specs = Candidate(way, norm, 1.0).specs(seen.stages, cached=True)
            kept = {"turning": sweep(self.task, specs, _RANGE_STEPS).turning}
            self.record.add(("sweep", way, norm), kept, self.budget.spent)
        turning: float | None = kept["turning"]
        return turning

    # ---- races

    def _trial(self, seen: Look, candidate: Candidate, fold: int, share: float) -> Measured:
        self._tell(f"{candidate.title}, lr {candidate.rate:g}, fold {fold + 1}, {share:.0%} of a run")
        key = (candidate.way, candidate.norm, candidate.rate, fold, round(share, 4))
        found = self.record.trial(*key)
        if found is None:
            factor = candidate.rate / self.task.base
            found = trial(self.task, candidate.specs(seen.stages, cached=True), factor, fold, share)
            self.record.add_trial(key, found, self.budget.spent)
        return found

    def _more_folds(self, race: Race, rounds: list[Round]) -> None:
        """Spend the rest of the budget on more folds for the last round; each fold is run for all candidates."""
        share = rounds[-1].share
        last = race.ranked(share)
        for fold in range(rounds[-1].folds, self.task.folds.count):
            needed = sum(race.seconds.get(one, self.step) for one in last) * self.task.run_steps * share * _OVERHEAD
            if needed > self.budget.left:
                return
            for candidate in last:
                race.measure(candidate, fold, share)

    # ---- results

    def _said(self, seen: Look, race: Race, complete: bool) -> Suggestion:
        share = race.decisive
        if share is None:
            raise PlanError(_nothing(race, complete))
        last, folds = race.comparable(share)
        found = [
            Entry(
                one, {fold: race.values[one, share][fold] for fold in folds}, share, race.seconds[one],
                memory_of(one, seen),
            )
            for one in last
        ]  # fmt: skip
        dropped = [*dropped_of(race.values, last), *race.errors.items()]
        return Suggestion(
            found, seen, self.task.metric, dropped, complete, [*self.task.folds.remarks, *self.remarks],
            seconds=self.budget.spent,
        )  # fmt: skip


def _near_typical(turning: float) -> float:
    return min(max(turning, _TYPICAL / 3), 3 * _TYPICAL)


def _nothing(race: Race, complete: bool) -> str:
    if race.errors:
        candidate, error = next(iter(race.errors.items()))
        return f"every candidate broke down; the first, {candidate.title}: {error}"
    return (
        "the time was up before one candidate was measured.\n  Give a larger --budget"
        if complete
        else "interrupted before one candidate was measured"
    )
