"""Learning rate factors per layer, computed in each step from moments or norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from lightning_freeze import arguments
from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row, Wants
from lightning_freeze.errors import PlanError
from lightning_freeze.optim.layer_ratios import EpochMeans, check_moments, gradient_ratios, moment_ratios, trust_ratios
from lightning_freeze.optim.slots import Slot
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.stages.stage import Stage, check_stages
from lightning_freeze.trainer._lightning import LightningModule, Trainer
from lightning_freeze.trainer.callback import FreezeCallback

_KINDS = {"moment_ratio": moment_ratios, "trust_ratio": trust_ratios, "gradient_ratio": gradient_ratios}


class LayerAdaptiveLR(FreezeCallback):
    """Multiply the rate of each parameter group by a factor that is computed in each step.

    "moment_ratio": the mean of |m| / (sqrt(v) + eps) over all elements of the group, with the bias-corrected moments of
    an Adam-family optimizer at the start of the step: near 1 if gradients agree from step to step, small if they are
    noise. "trust_ratio": |w| / |g| over the group (LARS, You et al., 2017, arXiv:1708.03888), with any optimizer.
    "gradient_ratio": |g| / |w| over the group, divided by the largest ratio of all groups of the optimizer, so at most
    1 (Auto-RGN, Lee et al., 2023, arXiv:2210.11466). The factor is 1 if it cannot be computed: no state yet, or a norm
    of 0. Factors are applied around the update, so schedulers do not see them. They cost one synchronization with the
    GPU per step.

    The factors of the last step are in `factors` (group -> factor), and logged as `factor/GROUP`.

    Args:
        kind: "moment_ratio", "trust_ratio" or "gradient_ratio".
        min_factor: smallest factor.
        max_factor: largest factor.
        stages: None: the existing groups (yours, divided by the stages of other callbacks). Otherwise as in
            `GradualUnfreeze`: each stage is a group.
        every: "step", or with "gradient_ratio" also "epoch": the factors of an epoch come from the mean ratios of the
            previous epoch; they are 1 in the first epoch.
        verbose: print the table at the start, on rank 0.

    Raises:
        PlanError: the arguments cannot work.
        OptimizerError: at the start, "moment_ratio" with an optimizer without `exp_avg` and `exp_avg_sq`.
        PatternError: at setup, a pattern matches nothing.

    Examples:
        >>> LayerAdaptiveLR("trust_ratio", max_factor=2.0).max_factor
        2.0
    """

    def __init__(
        self,
        kind: Literal["moment_ratio", "trust_ratio", "gradient_ratio"] = "moment_ratio",
        min_factor: float = 0.0,
        max_factor: float = 10.0,
        stages: str | int | Sequence[str | Sequence[str] | Stage] | None = None,
        every: Literal["step", "epoch"] = "step",
        verbose: bool = True,
    ) -> None:
        arguments.check_choice(kind, ("moment_ratio", "trust_ratio", "gradient_ratio"), "kind", self.title)
        arguments.check_choice(every, ("step", "epoch"), "every", self.title)
        if every == "epoch" and kind != "gradient_ratio":
            raise PlanError(f"{self.title}: every='epoch' can be used only with kind='gradient_ratio'")
        arguments.check_number(min_factor, "min_factor", self.title)
        arguments.check_number(max_factor, "max_factor", self.title)
        if not 0 <= min_factor <= max_factor or max_factor == 0:
            raise PlanError(
                f"{self.title}: min_factor={min_factor} and max_factor={max_factor} must hold "
                "0 <= min_factor <= max_factor, and max_factor greater than 0"
            )
        if stages is not None:
            check_stages(stages, self.title)
        self.kind = kind
        self.min_factor = float(min_factor)
        self.max_factor = float(max_factor)
        self.stages = stages
        self.every = every
        self.verbose = verbose
        self.factors: dict[str, float] = {}
        self._prefixes: dict[int, str] = {}
        self._stepped = False  # with this batch: not within an accumulation window
        self._rows: list[Row] = []
        self._places: dict[int, int] = {}  # optimizer -> its place in the run
        self._means = EpochMeans()

    def bind(self, context: Context) -> Binding:
        stages = [] if self.stages is None else context.stages(self.stages, self.title)
        times = f"each step's rate times the {self.kind}, {self.min_factor:g} to {self.max_factor:g}"
        self._rows = [Row(stage.name, stage.patterns, times, stage.names) for stage in stages]
        self._rows = self._rows or [Row(self.title, ["*"], times, list(context.index.parameters))]
        return Binding(labels={name: stage.name for stage in stages for name in stage.names})

    def check_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        if self.kind == "moment_ratio":
            for optimizer in optimizers:
                check_moments(optimizer, self.title)
        several = len(optimizers) > 1
        self._prefixes = {id(one): f"optimizer{k}/" if several else "" for k, one in enumerate(optimizers)}
        self._places = {id(one): place for place, one in enumerate(optimizers)}
        self.factors = {}

    @property
    def shapes_steps(self) -> bool:
        return True

    def wants(self, progress: Progress) -> Wants:
        self._means.begin(progress.epoch)
        return Wants()

    def observe(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> None:
        if self.every == "epoch" and (ratios := gradient_ratios(optimizer)) is not None:
            self._means.add(self._places[id(optimizer)], steps, ratios)

    def step_factors(self, optimizer: Optimizer, slots: Sequence[Slot], steps: int) -> Sequence[float] | None:
        ratios = (
            self._means.last(self._places[id(optimizer)]) if self.every == "epoch" else _KINDS[self.kind](optimizer)
        )
        if ratios is None:
            return None
        if self.kind == "gradient_ratio":
            ratios = ratios / ratios.max()
        usable = ratios.isfinite() & (ratios > 0)
        factors: list[float] = torch.where(
            usable, ratios.clamp(self.min_factor, self.max_factor), 1.0
        ).tolist()  # the one wait
        named = zip(slots, optimizer.param_groups, factors, strict=True)
        prefix = self._prefixes.get(id(optimizer), "")
        for slot, group, factor in named:
            if group["params"]:
                self.factors[f"{prefix}{slot.name}"] = factor
            else:
                self.factors.pop(f"{prefix}{slot.name}", None)  # frozen since
        return factors

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._stepped = self._stepped, False
        if stepped and self.factors and trainer._logger_connector.should_update_logs:
            logged = {f"factor/{name}": factor for name, factor in self.factors.items()}
            for logger in trainer.loggers:
                logger.log_metrics(logged, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    # ---- tables, checkpoints

    def rows(self, progress: Progress) -> list[Row]:
        return self._rows

    def state_of_run(self) -> dict[str, Any]:
        return {"means": self._means.record()} if self.every == "epoch" else {}

    def load_state_of_run(self, state: dict[str, Any]) -> None:
        self._means = EpochMeans.of(state.get("means", {}))
