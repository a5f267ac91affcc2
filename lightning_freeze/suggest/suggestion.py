"""The result of a search: candidates with their measurements, a choice, and its YAML block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lightning_freeze.suggest.candidates import Candidate
from lightning_freeze.suggest.intervals import Interval, interval, paired
from lightning_freeze.suggest.look import Look
from lightning_freeze.suggest.metric import Metric
from lightning_freeze.suggest.ways import WAYS, Spec, make, spec


@dataclass(frozen=True)
class Entry:
    """A candidate of the last round.

    Attributes:
        candidate: the candidate.
        values: the metric of each fold.
        share: length of its runs as a fraction of the user's run.
        step: seconds of an optimizer step, without validation.
        memory: bytes of saved activations, gradients and optimizer state at the moment when most trains; None:
            unknown.
    """

    candidate: Candidate
    values: Mapping[int, float]
    share: float
    step: float
    memory: float | None

    @property
    def interval(self) -> Interval:
        return interval([*self.values.values()])


@dataclass
class Suggestion:
    """The suggestion and its uncertainty.

    Attributes:
        entries: the candidates of the last round, best first.
        dropped: candidates that left in earlier rounds or failed, with the reason.
        look: stages and gradient statistics.
        metric: the metric that candidates were compared by.
        complete: whether all rounds were completed.
        remarks: sentences for the user.
        stages: the stages of the YAML block.
        config: parts of the user's config that the block repeats.
        lr_argument: the model's argument for the learning rate; "" if none was found.
    """

    entries: list[Entry]
    look: Look
    metric: Metric
    dropped: list[tuple[Candidate, str]] = field(default_factory=list)
    complete: bool = True
    remarks: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    lr_argument: str = ""
    seconds: float = 0.0

    @property
    def best(self) -> Entry:
        """The candidate with the best mean."""
        return self.entries[0]

    @property
    def rate(self) -> float:
        """The learning rate of the choice; if stages have different rates, that of the head."""
        return self.best.candidate.rate

    def specs(self) -> list[Spec]:
        """The callbacks of the choice, and a factor for the module's rate if the rate is not an argument."""
        found = self.best.candidate.specs(self.look.stages)
        factor = self.rate / self.look.base
        if self.lr_argument or factor == 1:
            return found
        return [*found, spec("LayerwiseLR", multipliers={"*": float(f"{factor:.6g}")})]

    def callbacks(self) -> list[Any]:
        """The callbacks of the choice, for `Trainer(callbacks=...)`. The learning rate is in them, whatever the module
        is configured with.
        """
        lr, self.lr_argument = self.lr_argument, ""
        try:
            return make(self.specs())
        finally:
            self.lr_argument = lr

    def yaml(self) -> str:
        """A config for LightningCLI, to be used after the user's own config."""
        block: dict[str, Any] = {"trainer": {"callbacks": [*self.config.get("callbacks", []), *self.specs()]}}
        if self.lr_argument:
            block["model"] = self._model()
        if self.config.get("nested"):
            block = {"fit": block}
        text: str = yaml.safe_dump(block, sort_keys=False, default_flow_style=None, width=100)
        return text

    def _model(self) -> dict[str, Any]:
        known = self.config.get("model")
        if not isinstance(known, dict) or "class_path" not in known:
            return {self.lr_argument: self.rate}
        arguments = dict(known.get("init_args") or {})
        return {"class_path": known["class_path"], "init_args": arguments | {self.lr_argument: self.rate}}

    def against(self, other: Entry) -> Interval:
        """The difference of the best and another candidate over their common folds; positive: the best is better."""
        sign = 1.0 if self.metric.mode == "max" else -1.0
        ahead = paired(self.best.values, other.values)
        return Interval(sign * ahead.mean, ahead.half)

    def clearly_better_than(self, other: Entry) -> bool:
        """Whether the 95% interval of the difference is above 0."""
        ahead = self.against(other)
        return ahead.mean - ahead.half > 0

    def cheapest(self) -> Entry:
        """The cheapest candidate of the last round."""
        return min(self.entries, key=lambda entry: entry.step)

    def full(self) -> Entry | None:
        """The best candidate of the last round that trains everything at one rate."""
        return next((entry for entry in self.entries if entry.candidate.way == "all"), None)


def memory_of(candidate: Candidate, look: Look) -> float | None:
    """Bytes in addition to the weights when most trains; only for ways that train from the head down."""
    trained = frozenset(WAYS[candidate.way].trains(len(look.stages)))
    found = look.costs.get(trained)
    if found is None or candidate.way == "norm and bias":
        return None
    return found.saved + found.gradients + (found.state or 0.0)


def sentences(found: Suggestion) -> list[str]:
    """The conclusions from the measurements."""
    lines = []
    for name, other in (("the cheapest", found.cheapest()), ("full fine-tuning", found.full())):
        if other is None or other is found.best:
            continue
        ahead, lines_of = found.against(other), found.best.candidate.title
        clear = "clearly better" if found.clearly_better_than(other) else "not clearly better"
        unsure = "no interval from 1 fold" if len(other.values) < 2 else f"± {ahead.half:.3g}"
        cheaper = f", which costs {other.step / found.best.step:.0%} of its step" if found.best.step else ""
        lines.append(
            f"{lines_of} is {clear} than {name} ({other.candidate.title}, lr {other.candidate.rate:g}): "
            f"{ahead.mean:+.3g} ({unsure}){cheaper}."
        )
    return lines


def dropped_of(
    race_values: Mapping[tuple[Candidate, float], Mapping[int, float]], last: Sequence[Candidate]
) -> list[tuple[Candidate, str]]:
    """Candidates that are not in the last round, with their last value."""
    found: dict[Candidate, str] = {}
    for (candidate, share), values in sorted(race_values.items(), key=lambda item: item[0][1]):
        if candidate not in last:
            found[candidate] = f"{interval([*values.values()]).mean:.3f} after {share:.0%} of a run"
    return [*found.items()]
