"""Hold the statistics of normalisation layers; their weight and bias train or not."""

from __future__ import annotations

from typing import Literal

from lightning_freeze import arguments
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row, Wants
from lightning_freeze.engine.lean_norm import can_be_lean
from lightning_freeze.errors import PatternError, PlanError
from lightning_freeze.model.frozen_view import FrozenView
from lightning_freeze.model.index import ModelIndex, Place
from lightning_freeze.model.layers import has_statistics
from lightning_freeze.model.patterns import as_patterns, resolve
from lightning_freeze.model.searchable import Member, searchable
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.trainer.callback import FreezeCallback


class BatchNormEval(FreezeCallback):
    """Hold normalisation layers in eval mode: they use their running statistics, and batches do not change these.

    The layers are BatchNorm1d/2d/3d, SyncBatchNorm, InstanceNorm with running statistics, and their subclasses.

    Args:
        patterns: layers to hold (see `select`). A layer without affine parameters is selected by its module name.
        when: "always", or "frozen": while the parameters of the layer are frozen; for a layer without parameters,
            those of the module that contains it.
        affine: "train" changes nothing for weight and bias; "freeze" freezes them for the whole run.
        memory_efficient: whether held BatchNorm layers with frozen weight and bias stop saving their input for the
            backward pass. Their gradient needs only a factor per channel. Outputs and gradients are equal up to
            rounding; the `state_dict` is the same. Layers with their own forward are not changed.
        verbose: print the table at the start and a line at each change, on rank 0.

    Raises:
        PlanError: the arguments cannot work.
        PatternError: at setup, a pattern matches no normalisation layer.

    Examples:
        >>> BatchNormEval("model.backbone", affine="freeze").when
        'always'
    """

    def __init__(
        self,
        patterns: str | list[str] = "*",
        when: Literal["always", "frozen"] = "always",
        affine: Literal["train", "freeze"] = "train",
        memory_efficient: bool = False,
        verbose: bool = True,
    ) -> None:
        arguments.check_choice(when, ("always", "frozen"), "when", self.title)
        arguments.check_choice(affine, ("train", "freeze"), "affine", self.title)
        arguments.check_flag(memory_efficient, "memory_efficient", self.title)
        if not as_patterns(patterns, self.title):
            raise PlanError(f"{self.title}: patterns is empty.\n  Use '*' for all normalisation layers")
        self.patterns = patterns
        self.when = when
        self.affine = affine
        self.memory_efficient = memory_efficient
        self.verbose = verbose
        self._layers: frozenset[Place] = frozenset()
        self._own: list[str] = []
        self._wants = Wants()

    def bind(self, context: Context) -> Binding:
        index = context.index
        layers = norm_layers(index, self.patterns, self.title)
        self._layers = frozenset(place for place, span in index.places if span.name in layers)
        chosen = [index.spans[place] for place in sorted(self._layers)]
        self._own = [span.name for span in chosen if not can_be_lean(span.module)]
        frozen = {name for layer in layers for name in index.under(layer)}
        self._wants = Wants(frozenset(frozen)) if self.affine == "freeze" else Wants()
        return Binding(freezes=(self._wants.frozen,))

    def wants(self, progress: Progress) -> Wants:
        return self._wants

    def holds(self, view: FrozenView) -> set[Place]:
        return set(self._layers) if self.when == "always" else view.frozen(self._layers)

    def lean(self, view: FrozenView) -> set[Place]:
        return view.train_nothing(self._layers) if self.memory_efficient else set()

    def remarks(self) -> list[str]:
        if not (self.memory_efficient and self._own):
            return []
        return [
            f"{self.title}: memory_efficient leaves {len(self._own)} layers as they are, which are not BatchNorm with "
            f"running statistics or have a forward of their own ('{self._own[0]}')."
        ]

    def rows(self, progress: Progress) -> list[Row]:
        when = "held always" if self.when == "always" else "held if frozen"
        return [Row(self.title, as_patterns(self.patterns), when, sorted(self._wants.frozen))]


def norm_layers(index: ModelIndex, patterns: str | list[str], owner: str) -> set[str]:
    """Names of the normalisation layers that patterns select by parameter, by layer, or by a containing module.

    Raises:
        PatternError: a pattern matches no such layer.
    """
    norms = [span for span in index.spans if has_statistics(span.module)]
    if not norms:
        raise PatternError(
            f"{owner}: {index.model_name} has no normalisation layer with running statistics (BatchNorm, "
            f"SyncBatchNorm, InstanceNorm with track_running_stats).\n  Remove {owner}"
        )
    members = [Member(span.name, span.module, "", None, span.name) for span in norms]
    for span in norms:
        own = {leaf: parameter for leaf, parameter in span.module._parameters.items() if parameter is not None}
        members += [Member(f"{span.name}.{leaf}", span.module, leaf, value, span.name) for leaf, value in own.items()]
    modules = {name: span.module for name, span in index.modules.items()}
    of = f"the {len(norms)} normalisation layers of {index.model_name}"
    return resolve(patterns, searchable(members, modules, of), owner)
