"""The search space of `suggest` for Optuna and Ray Tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from lightning_freeze.errors import PlanError
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.model.layers import has_statistics
from lightning_freeze.stages.discover import discover_stages
from lightning_freeze.stages.stage import Stage
from lightning_freeze.suggest.ways import Spec, make, spec

DECAYS = (1.0, 0.8, 0.65, 0.5)
ANCHORS = (0.0, 10.0, 100.0)


@dataclass(frozen=True)
class Space:
    """Frozen depth, decay, learning rate, mode of BatchNorm and anchor of a model.

    Args:
        stages: the stages, head first.
        has_norm: whether there are normalisation layers with running statistics.
        rates: lowest and highest learning rate.
    """

    stages: tuple[Stage, ...]
    has_norm: bool
    rates: tuple[float, float]

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """All choices except the rate, with their values. `frozen` is a number of stages, counted from the input."""
        found: dict[str, tuple[Any, ...]] = {"frozen": tuple(range(len(self.stages))), "decay": DECAYS}
        if self.has_norm:
            found["norm"] = ("eval", "train")
        return found | {"anchor": ANCHORS}

    def optuna(self, trial: Any) -> dict[str, Any]:
        """Let an Optuna trial choose values."""
        chosen = {name: trial.suggest_categorical(name, list(values)) for name, values in self.choices().items()}
        return chosen | {"rate": trial.suggest_float("rate", *self.rates, log=True)}

    def ray(self) -> dict[str, Any]:
        """The space for `param_space` of Ray Tune."""
        tune = import_module("ray.tune")
        found = {name: tune.choice(list(values)) for name, values in self.choices().items()}
        return found | {"rate": tune.loguniform(*self.rates)}

    def specs(self, chosen: Mapping[str, Any]) -> list[Spec]:
        """The callbacks of a choice, as in a LightningCLI config. The module must use `rate` itself."""
        depth, held = len(self.stages) - int(chosen["frozen"]), chosen.get("norm", "eval") == "eval"
        if not 1 <= depth <= len(self.stages):
            raise PlanError(f"frozen={chosen['frozen']}: of {len(self.stages)} stages at least one has to train")
        frozen = [pattern for stage in self.stages[depth:] for pattern in stage.patterns]
        found = [spec("FreezeLayers", patterns=frozen, eval_frozen=held)] if frozen else []
        if chosen.get("decay", 1.0) != 1.0:
            stages = [list(stage.patterns) for stage in self.stages]
            found.append(spec("LayerwiseLR", decay=float(chosen["decay"]), stages=stages))
        if chosen.get("anchor") and depth > 1:
            body = [pattern for stage in self.stages[1:] for pattern in stage.patterns]
            found.append(spec("AnchorWeights", strength=float(chosen["anchor"]), patterns=body))
        return [*found, spec("BatchNormEval")] if self.has_norm and held else found

    def callbacks(self, chosen: Mapping[str, Any]) -> list[Any]:
        """The callbacks of a choice, for `Trainer(callbacks=...)`."""
        return make(self.specs(chosen))


def space(
    model: nn.Module, example_input: object = None, max_stages: int = 6, rates: tuple[float, float] = (1e-5, 1e-1)
) -> Space:
    """The choices of `suggest` as a search space.

    Args:
        model: any module; it is not changed.
        example_input: see `discover_stages`.
        max_stages: maximum number of stages for frozen depth and decay.
        rates: lowest and highest learning rate, on a logarithmic scale.

    Raises:
        PlanError: `rates` is not a range.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = space(model)
        >>> found.choices()["frozen"]
        (0, 1)
        >>> [one["class_path"] for one in found.specs({"frozen": 1, "decay": 1.0, "anchor": 0.0})]
        ['lightning_freeze.FreezeLayers']
    """
    if not 0 < rates[0] < rates[1]:
        raise PlanError(f"space: rates={rates} must be two numbers greater than 0, the lower one first")
    norm = any(has_statistics(span.module) for span in ModelIndex(model).spans)
    return Space(tuple(discover_stages(model, example_input, max_stages)), norm, rates)
