"""What trained when, and how fast: recorded by the monitor, or computed by the preview."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_freeze.engine.declarations import Row
from lightning_freeze.engine.run_view import RunView

REST = "rest"  # the name for parameters without a stage
_SAMPLES = 800  # maximum number of samples; longer runs keep every second one, every fourth, ...


@dataclass
class Sample:
    """The state of a run from `time` until the next sample.

    Attributes:
        time: epochs done, as a float.
        step: optimizer steps done.
        rates: learning rate of each stage; None while it is frozen.
        trainable: number of trainable parameters.
        change: whether something was unfrozen or frozen at this time.
    """

    time: float
    step: int
    rates: list[float | None]
    trainable: int
    change: bool = False


@dataclass
class Timeline:
    """Stages over time.

    Attributes:
        title: title of the picture.
        stages: names, head first.
        sizes: number of parameters of each stage.
        parameters: number of parameters of the model.
        samples: the samples in order of time.
        end: end of the last sample, in epochs.
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
        """Set the stages of a run; samples from an earlier part of the run are kept."""
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
            rates: the learning rate of each slot of each optimizer.
            time: epochs done.
            step: optimizer steps done.
            change: whether something was unfrozen or frozen at this time.
        """
        by_stage = stage_rates(run, rates, self.stages)
        trainable = sum(run.index.parameters[name].numel() for name in run.trainable)
        sample = Sample(time, step, [by_stage[stage] for stage in self.stages], trainable, change)
        self.end = max(self.end, time)
        if self.samples and self.samples[-1].time == time:  # the change belongs to the sample that was just taken
            sample.change |= self.samples.pop().change
        self.samples.append(sample)
        if len(self.samples) > _SAMPLES:
            self.thinned *= 2
            self.samples = [one for place, one in enumerate(self.samples) if place % 2 == 0 or one.change]

    def record(self) -> dict[str, Any]:
        """The timeline as plain types, for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Timeline:
        """Restore what `record` returned."""
        samples = [Sample(**sample) for sample in record.get("samples", [])]
        values = [(time, value) for time, value in record.get("values", [])]
        return cls(**{**record, "samples": samples, "values": values})


def stage_members(run: RunView) -> dict[str, list[str]]:
    """Stage -> its parameters, in order of training; parameters without a stage come last.

    Of stages that start together, the one nearer to the head comes first: in the order of another policy's stages, such
    as those of a `LayerwiseLR`, else in reversed order of registration.
    """
    found: dict[str, list[str]] = {}
    rest: list[str] = []
    for name in reversed(run.index.parameters):
        label = run.labels.get(name, "")
        (found.setdefault(label, []) if label else rest).append(name)
    places = [_places(policy.rows(run.progress)) for policy in run.policies]
    never = len(run.index.parameters)
    order = {
        label: [min(place.get(name, never) for name in names) for place in places] for label, names in found.items()
    }
    ordered = {label: found[label] for label in sorted(found, key=lambda label: order[label])}
    if rest:
        ordered[REST if REST not in ordered else f"{REST} (in no stage)"] = rest
    return ordered


def _places(rows: Sequence[Row]) -> dict[str, int]:
    """Parameter -> the first row that it is in."""
    found: dict[str, int] = {}
    for place, row in enumerate(rows):
        for name in row.names:
            found.setdefault(name, place)
    return found


def stage_names(run: RunView) -> list[str]:
    """The stages of a run, head first."""
    return list(stage_members(run))


def stage_rates(
    run: RunView, rates: Sequence[Sequence[float]], stages: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Stage -> learning rate, the largest of its slots; None while it is frozen.

    Args:
        run: the run.
        rates: the rate of each slot of each optimizer.
        stages: the names of the stages, if they are known already.
    """
    found: dict[str, float | None] = dict.fromkeys(stage_names(run) if stages is None else stages)
    for (label, trains), rate in zip(run.occupied, [rate for used in rates for rate in used], strict=True):
        stage = label or REST
        if trains and stage in found:
            found[stage] = max(found[stage] or 0.0, rate)
    return found
