"""What trained when, and how fast: a run in numbers, as the monitor records it and the preview computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_freeze.engine.run_view import RunView

REST = "rest"  # the name of what is in no stage
_SAMPLES = 800  # kept at most; of a longer run every second one, every fourth, ...


@dataclass
class Sample:
    """The run from `time` until the next sample.

    Attributes:
        time: in epochs, with the part of an epoch that is over.
        step: optimizer steps done.
        rates: learning rate of each stage; None while it is frozen.
        trainable: parameters that train.
        change: whether something was unfrozen or frozen here.
    """

    time: float
    step: int
    rates: list[float | None]
    trainable: int
    change: bool = False


@dataclass
class Timeline:
    """Stages by time.

    Attributes:
        title: what is shown.
        stages: names, head first.
        sizes: parameters of each stage.
        parameters: of the whole model.
        samples: in order of time.
        end: where the last sample ends, in epochs.
        metric: name of the metric in `values`.
        values: (time, value) of each validation.
    """

    title: str = ""
    stages: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    parameters: int = 0
    samples: list[Sample] = field(default_factory=list)
    end: float = 0.0
    metric: str = ""
    values: list[tuple[float, float]] = field(default_factory=list)
    thinned: int = 1

    def begin(self, run: RunView, title: str) -> None:
        """Take the stages of a run; what an earlier part of it recorded stays."""
        self.title, self.stages = title, stage_names(run)
        members = stage_members(run)
        sizes = {name: parameter.numel() for name, parameter in run.index.parameters.items()}
        self.sizes = [sum(sizes[name] for name in members[stage]) for stage in self.stages]
        self.parameters = sum(sizes.values())

    def add(
        self, run: RunView, rates: Sequence[Sequence[float]], time: float, step: int, *, change: bool = False
    ) -> None:
        """Record the state of a run from `time` on.

        Args:
            run: the run.
            rates: of each slot of each optimizer.
            time: in epochs.
            step: optimizer steps done.
            change: whether something was unfrozen or frozen here.
        """
        by_stage = stage_rates(run, rates)
        trainable = sum(run.index.parameters[name].numel() for name in run.trainable)
        sample = Sample(time, step, [by_stage[stage] for stage in self.stages], trainable, change)
        self.end = max(self.end, time)
        if self.samples and self.samples[-1].time == time:  # a change where a sample was taken just now
            sample.change |= self.samples.pop().change
        self.samples.append(sample)
        if len(self.samples) > _SAMPLES:
            self.thinned *= 2
            self.samples = [one for place, one in enumerate(self.samples) if place % 2 == 0 or one.change]

    def record(self) -> dict[str, Any]:
        """As plain types, for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Timeline:
        """What `record` gave."""
        samples = [Sample(**sample) for sample in record.get("samples", [])]
        values = [(time, value) for time, value in record.get("values", [])]
        return cls(**{**record, "samples": samples, "values": values})


def stage_members(run: RunView) -> dict[str, list[str]]:
    """Stage -> its parameters, the stage that trains first in front; those of no stage are the rest, at the end."""
    ordered = dict.fromkeys(run.labels.get(name, "") for row in run.rows for name in row.names)
    found: dict[str, list[str]] = {label: [] for label in ordered if label}
    rest: list[str] = []
    for name in reversed(run.index.parameters):
        label = run.labels.get(name, "")
        (found.setdefault(label, []) if label else rest).append(name)
    if rest:
        found[REST if REST not in found else f"{REST} (in no stage)"] = rest
    return {stage: names for stage, names in found.items() if names}


def stage_names(run: RunView) -> list[str]:
    """The stages of a run, head first."""
    return list(stage_members(run))


def stage_rates(run: RunView, rates: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Stage -> learning rate, the largest of its slots; None while it is frozen.

    Args:
        run: the run.
        rates: of each slot of each optimizer.
    """
    found: dict[str, float | None] = dict.fromkeys(stage_names(run))
    for slot, rate in zip(run.slots, [rate for used in rates for rate in used], strict=True):
        label = slot.label or REST
        if slot.trains and label in found:
            found[label] = max(found[label] or 0.0, rate)
    return found
