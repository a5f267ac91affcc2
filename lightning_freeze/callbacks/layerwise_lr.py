"""Learning rates per layer: small at the input, large at the head."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row, own_factors
from lightning_freeze.engine.factors import check_rates, rate_factors
from lightning_freeze.errors import PlanError
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.stages.stage import Stage, check_stages
from lightning_freeze.trainer.callback import FreezeCallback


class LayerwiseLR(FreezeCallback):
    """Scale the learning rate of each stage. Every LR scheduler keeps working.

    With `decay`, stage k below the top has the rate `lr * decay**k` (discriminative fine-tuning, Howard and Ruder,
    2018, arXiv:1801.06146). Factors of several callbacks multiply.

    Args:
        decay: factor from one stage to the next below it, 0 < decay <= 1.
        multipliers: pattern or name of a stage -> factor, greater than 0. It replaces the factor of `decay`, and a
            later entry replaces an earlier one. To multiply both, use two `LayerwiseLR`.
        stages: None: the stages of the `GradualUnfreeze` in the same Trainer, else "auto". Otherwise as in
            `GradualUnfreeze`. The `factor` of a `Stage` replaces the factors of this callback.

    Raises:
        PlanError: neither `decay` nor `multipliers` is given, or a value is out of range.
        PatternError: at setup, a pattern matches nothing.

    Examples:
        >>> LayerwiseLR(decay=0.5, multipliers={"model.embeddings": 0.01}).decay
        0.5
    """

    def __init__(
        self,
        decay: float | None = None,
        multipliers: dict[str, float] | None = None,
        stages: str | int | Sequence[str | Sequence[str] | Stage] | None = None,
    ) -> None:
        if decay is None and not multipliers:
            raise PlanError(f"{self.title}: give decay, multipliers, or both")
        check_rates(decay, multipliers, self.title)
        if stages is not None:
            check_stages(stages, self.title)
        self._rows: list[Row] = []
        self.decay = decay
        self.multipliers = multipliers
        self.stages = stages

    def bind(self, context: Context) -> Binding:
        stages = context.stages_beside(self.stages, self.title)
        labels, factors = rate_factors(context, self.decay, self.multipliers, stages, self.title)
        named = context.stages(self.stages, self.title) if self.stages is not None else []
        own = self.stages is not None or not context.shared
        self._rows = [
            Row(stage.name, stage.patterns, "always", stage.names)
            for stage in (context.stages(stages, self.title) if own and self.decay is not None else [])
        ]
        return Binding(labels=labels, factors=factors, own_factors=own_factors(named))

    def rows(self, progress: Progress) -> list[Row]:
        return self._rows
