"""Ways to fine-tune, as callbacks in the form of a LightningCLI config."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lightning_freeze.stages.stage import Stage

Spec = dict[str, Any]  # class_path and init_args
DECAY = 0.5  # ratio of the rates of a stage and of the stage above it
ANCHOR = 100.0  # strength of AnchorWeights


@dataclass(frozen=True)
class Way:
    """A way to fine-tune a model with stages.

    Args:
        name: name in tables.
        callbacks: function of the stages (head first) and `eval_frozen` that returns specs of callbacks.
        trains: function of the number of stages that returns the stages that train at the end.
        top: whether rates are those of a new head instead of those of pretrained layers.
    """

    name: str
    callbacks: Callable[[Sequence[Stage], bool], list[Spec]]
    trains: Callable[[int], Sequence[int]]
    top: bool = False


def spec(name: str, **arguments: Any) -> Spec:
    """The spec of a callback of this package."""
    return {"class_path": f"lightning_freeze.{name}", "init_args": arguments}


def make(specs: Sequence[Spec]) -> list[Any]:
    """Instantiate the callbacks of specs, as LightningCLI does."""
    return [_class(one["class_path"])(**one.get("init_args", {})) for one in specs]


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _patterns(stages: Sequence[Stage]) -> list[str]:
    return [pattern for stage in stages for pattern in stage.patterns]


def _as_lists(stages: Sequence[Stage]) -> list[Any]:
    return [list(stage.patterns) for stage in stages]


def _all(stages: Sequence[Stage], held: bool) -> list[Spec]:
    return []


def _only(trains: Callable[[int], Sequence[int]]) -> Callable[[Sequence[Stage], bool], list[Spec]]:
    def callbacks(stages: Sequence[Stage], held: bool) -> list[Spec]:
        kept = set(trains(len(stages)))
        frozen = [stage for place, stage in enumerate(stages) if place not in kept]
        patterns = _patterns(frozen)
        return [spec("FreezeLayers", patterns=patterns, eval_frozen=held)] if patterns else []

    return callbacks


def _decay(stages: Sequence[Stage], held: bool) -> list[Spec]:
    return [spec("LayerwiseLR", decay=DECAY, stages=_as_lists(stages))]


def _gradual(stages: Sequence[Stage], held: bool) -> list[Spec]:
    at = [round(0.6 * place / max(1, len(stages) - 1), 3) for place in range(len(stages))]
    return [spec("GradualUnfreeze", stages=_as_lists(stages), at=at, warmup_steps=8, eval_frozen=held)]


def _two_phases(start: float, lowest: float, spread: bool) -> Callable[[Sequence[Stage], bool], list[Spec]]:
    """Train the head until `start` of the run, then all; rates fall to `lowest`, at once or evenly over the stages."""

    def callbacks(stages: Sequence[Stage], held: bool) -> list[Spec]:
        body = stages[1:]
        powers = [(place + 1) / len(body) if spread else 1.0 for place in range(len(body))]
        phases = [list(stages[0].patterns), _patterns(body)]
        unfreeze = spec("GradualUnfreeze", stages=phases, at=[0.0, start], warmup_steps=8, eval_frozen=held)
        return [unfreeze, spec("LayerwiseLR", multipliers=_factors(stages, [1.0, *(lowest**p for p in powers)]))]

    return callbacks


def _factors(stages: Sequence[Stage], factors: Sequence[float]) -> dict[str, float]:
    """A factor for each pattern, the lowest stage first, so that patterns of higher stages win."""
    return {
        pattern: round(factor, 6)
        for stage, factor in reversed([*zip(stages, factors, strict=True)])
        for pattern in stage.patterns
        if not pattern.startswith("!")
    }


def _small(stages: Sequence[Stage], held: bool) -> list[Spec]:
    kept = [f"!{pattern}" for pattern in stages[0].patterns if not pattern.startswith("!")]
    return [spec("FreezeLayers", patterns=["*", "!kind:norm", "!kind:bias", *kept], eval_frozen=held)]


def _anchor(stages: Sequence[Stage], held: bool) -> list[Spec]:
    return [spec("AnchorWeights", strength=ANCHOR, patterns=_patterns(stages[1:]))]


def _first(count: int) -> list[int]:
    """Train the head and the third of the body nearest the input."""
    return [0, *range(count - max(1, round((count - 1) / 3)), count)]


def _every(count: int) -> Sequence[int]:
    return range(count)


def _subset(name: str, trains: Callable[[int], Sequence[int]], top: bool = False) -> Way:
    return Way(name, _only(trains), trains, top)


WAYS = {
    way.name: way
    for way in (
        _subset("head", lambda count: [0], top=True),
        _subset("last stage", lambda count: range(min(2, count))),
        _subset("last half", lambda count: range(1 + math.ceil((count - 1) / 2))),
        _subset("first third", _first),
        Way("norm and bias", _small, _every, top=True),
        Way("all", _all, _every),
        Way("decay", _decay, _every),
        Way("gradual", _gradual, _every),
        Way("LP-FT", _two_phases(1 / 3, 0.1, spread=False), _every, top=True),
        Way("anchor", _anchor, _every),
        Way("slices", _two_phases(0.2, 0.01, spread=True), _every, top=True),
    )
}


def callbacks_of(way: str, stages: Sequence[Stage], norm: str) -> list[Spec]:
    """The callbacks of a way.

    Args:
        way: a name from `WAYS`.
        stages: the stages of the model, head first.
        norm: "eval" holds normalisation statistics for the whole run; "train" keeps Lightning's behaviour even for
            frozen layers; "" is for a model without them.
    """
    found = WAYS[way].callbacks(stages, norm != "train")
    return [*found, spec("BatchNormEval")] if norm == "eval" else found
