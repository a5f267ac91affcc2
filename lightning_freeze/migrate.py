"""Convert the arguments of other packages' fine-tuning callbacks to callbacks of this package.

Each function first makes a `Plan` of class names and arguments, which the command line can print as YAML. Arguments
without a counterpart become one-line remarks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

import lightning_freeze
from lightning_freeze import arguments
from lightning_freeze.errors import PlanError
from lightning_freeze.model.patterns import as_strings
from lightning_freeze.stages.stage import Stage
from lightning_freeze.trainer.callback import FreezeCallback

_NO_BATCH_NORM = "!type:_BatchNorm"  # Lightning freezes LayerNorm too
_NO_NORM_OF_FASTAI = "!type:_NormBase & !type:LayerNorm"


@dataclass
class Plan:
    """Callbacks as in YAML, with remarks.

    Attributes:
        callbacks: pairs of a class name and its arguments, as plain values.
        remarks: one line for each argument without a counterpart, or with a different one.
    """

    callbacks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, name: str, **options: Any) -> None:
        """Add a callback."""
        self.callbacks.append((name, options))

    def build(self, owner: str) -> list[FreezeCallback]:
        """Build the callbacks, and warn of the remarks."""
        for remark in self.remarks:
            warnings.warn(f"{owner}: {remark}", stacklevel=3)
        return [getattr(lightning_freeze, name)(**_with_stages(options)) for name, options in self.callbacks]


def _with_stages(options: Mapping[str, Any]) -> dict[str, Any]:
    stages = options.get("stages")
    if not isinstance(stages, list):
        return dict(options)
    return {**options, "stages": [Stage(**stage) for stage in stages]}


def backbone_finetuning(
    unfreeze_backbone_at_epoch: int = 10,
    lambda_func: Callable[[int], float] = lambda epoch: 2.0,
    backbone_initial_ratio_lr: float = 0.1,
    backbone_initial_lr: float | None = None,
    should_align: bool = True,
    initial_denom_lr: float = 10.0,
    train_bn: bool = True,
    verbose: bool = False,
    rounding: int = 12,
    *,
    lr: float | None = None,
    backbone: str = "backbone",
) -> list[FreezeCallback]:
    """Callbacks that do what Lightning's `BackboneFinetuning` does with these arguments.

    The backbone is frozen until its epoch; with `train_bn` its BatchNorm trains from the start. After that its rate is
    `backbone_initial_ratio_lr` times the rate of the head, and grows by `lambda_func` in each epoch.

    Args:
        unfreeze_backbone_at_epoch: as in Lightning.
        lambda_func: as in Lightning. If its value varies, the first value is used, with a remark.
        backbone_initial_ratio_lr: as in Lightning.
        backbone_initial_lr: as in Lightning; requires `lr`, because rates are factors here.
        should_align: as in Lightning: the backbone's rate does not exceed that of the head.
        initial_denom_lr: has no effect in Lightning, and none here.
        train_bn: as in Lightning. False leaves BatchNorm of the backbone frozen for the whole run.
        verbose: print the table at the start and a line at each change.
        rounding: has no effect here.
        lr: the rate in `configure_optimizers`.
        backbone: pattern of the backbone.

    Raises:
        PlanError: the arguments cannot work.

    Examples:
        >>> [type(callback).__name__ for callback in backbone_finetuning(unfreeze_backbone_at_epoch=3)]
        ['GradualUnfreeze', 'RateGrowth']
    """
    plan = Plan()
    arguments.check_positive(unfreeze_backbone_at_epoch, "unfreeze_backbone_at_epoch", "backbone_finetuning", minimum=0)
    deep = f"{backbone} & {_NO_BATCH_NORM}"
    stages = [
        {"name": "head", "patterns": ["*", f"!{deep}" if train_bn else f"!{backbone}"]},
        {"name": "backbone", "patterns": [backbone if train_bn else deep]},
    ]
    plan.add("GradualUnfreeze", stages=stages, at=[0, unfreeze_backbone_at_epoch], verbose=verbose)
    ratio = backbone_initial_ratio_lr
    if backbone_initial_lr is not None and lr is None:
        plan.remarks.append(
            f"backbone_initial_lr={backbone_initial_lr} is absolute and rates are factors here: give lr=..., the rate "
            f"of your optimizer; until then {ratio} of it is used"
        )
    elif backbone_initial_lr is not None and lr is not None:
        ratio = backbone_initial_lr / lr
    start, steps = unfreeze_backbone_at_epoch, range(unfreeze_backbone_at_epoch + 2, unfreeze_backbone_at_epoch + 50)
    growth = float(lambda_func(start + 2))
    if any(lambda_func(step) != growth for step in steps):
        plan.remarks.append(
            f"lambda_func varies from epoch to epoch and has no counterpart: {growth:g} is used for all"
        )
    limit = 1.0 if should_align else None
    plan.add("RateGrowth", patterns=deep, start=start, initial=ratio, growth=growth, limit=limit, verbose=verbose)
    return plan.build("backbone_finetuning")


def finetuning_schedule(
    ft_schedule: str | Path | Mapping[Any, Any] | None = None, **options: Any
) -> list[FreezeCallback]:
    """Callbacks that do what finetuning-scheduler does with this schedule and the arguments of `FinetuningScheduler`.

    Args:
        ft_schedule: path of the YAML file, or a dict. None: the schedule that finetuning-scheduler generates for
            `model`; without a model, discovered stages.
        options: the arguments of FinetuningScheduler (`max_depth`, `base_max_lr`, `restore_best`,
            `epoch_transitions_only`, ...); `monitor`, `mode`, `patience` and `min_delta` of `FTSEarlyStopping`; `lr`,
            the rate in `configure_optimizers`, to which rates of later phases become factors; `model`, the module for
            which a schedule is generated.

    Raises:
        PlanError: the schedule does not exist, or an argument does not.

    Examples:
        >>> phases = {0: {"params": ["model.fc.*"], "max_transition_epoch": 3}, 1: {"params": ["model.layer4.*"]}}
        >>> made = finetuning_schedule(phases, lr=1e-3, epoch_transitions_only=True, restore_best=False)
        >>> made[0].at, [stage.factor for stage in made[0].stages]
        ([0, 3], [None, 0.01])
    """
    return schedule_plan(ft_schedule, **options).build("finetuning_schedule")


_WITHOUT_COUNTERPART = {
    "reinit_optim_cfg": "one optimizer runs for the whole fit here",
    "reinit_lr_cfg": "one LR scheduler runs for the whole fit here; StageSchedule restarts a cycle in each stage",
    "strategy_adapter_cfg": "no strategy needs an adapter here",
    "custom_strategy_adapters": "no strategy needs an adapter here",
    "apply_lambdas_new_pgs": "every scheduler goes on scaling every stage here",
    "gen_ft_sched_only": "use `lightning-freeze stages`",
}
_SILENT = ("allow_untested", "logging_level", "enforce_phase0_params", "frozen_bn_track_running_stats", "log_dir")
_OF_STOPPING = ("monitor", "mode", "patience", "min_delta")


def schedule_plan(
    ft_schedule: str | Path | Mapping[Any, Any] | None,
    max_depth: int = -1,
    base_max_lr: float = 1e-5,
    restore_best: bool = True,
    epoch_transitions_only: bool = False,
    lr: float | None = None,
    model: nn.Module | None = None,
    **others: Any,
) -> Plan:
    """The plan of `finetuning_schedule`.

    Raises:
        PlanError: the schedule does not exist, or an argument does not.
    """
    plan = Plan()
    if unknown := sorted(set(others) - {*_WITHOUT_COUNTERPART, *_SILENT, *_OF_STOPPING}):
        raise PlanError(f"finetuning_schedule: FinetuningScheduler has no argument {', '.join(unknown)}")
    plan.remarks += [f"{name}: {why}" for name, why in _WITHOUT_COUNTERPART.items() if others.get(name)]
    stopping = {"monitor": "val_loss"} | {name: others[name] for name in _OF_STOPPING if name in others}
    phases = _phases(ft_schedule, model)
    phases = phases if max_depth < 0 or phases is None else phases[: max_depth + 1]
    trigger: dict[str, Any] = {**stopping, "restore_best": restore_best}
    stages: Any = "auto"
    if phases is None:
        plan.remarks.append("without a schedule and a model, stages are discovered: head first, one per block")
    else:
        stages = [_stage(depth, phase) for depth, phase in enumerate(phases)]
        _set_factors(stages, phases, base_max_lr, lr, plan)
        ends = [int(phase.get("max_transition_epoch", -1)) for phase in phases[:-1]]
        if epoch_transitions_only:
            trigger = {"at": _starts(ends)}
            if restore_best:
                plan.remarks.append("restore_best has no counterpart without a metric: the last weights go on")
        else:
            _set_limits(stages, ends, plan)
    plan.add("GradualUnfreeze", stages=stages, **trigger)
    return plan


def _phases(schedule: Any, model: nn.Module | None) -> list[dict[str, Any]] | None:
    """The phases of a schedule in order."""
    if schedule is None:
        names = None if model is None else [name for name, _ in model.named_parameters()][::-1]
        return None if names is None else [{"params": names[at : at + 2]} for at in range(0, len(names), 2)]
    found = schedule if isinstance(schedule, Mapping) else _read(Path(schedule))
    keys = sorted(found) if all(isinstance(key, int) for key in found) else list(found)
    if keys != list(range(len(keys))) or not keys:
        raise PlanError(f"the phases of the schedule must be numbered 0, 1, 2, ..., got {keys}")
    for key in keys:
        params = found[key].get("params") if isinstance(found[key], Mapping) else None
        if not isinstance(params, Sequence) or isinstance(params, str) or not params:
            raise PlanError(f"phase {key} of the schedule has no list `params`, got {found[key]!r}")
    return [dict(found[key]) for key in keys]


def _read(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"schedule {path} cannot be read: {error}") from error
    if not isinstance(found, Mapping):
        raise PlanError(f"schedule {path} is not a schedule of finetuning-scheduler: it has no phases 0, 1, 2, ...")
    return found


def _stage(depth: int, phase: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": f"phase {depth}", "patterns": [_pattern(str(written)) for written in phase["params"]]}


def _pattern(written: str) -> str:
    """Convert a name or expression of finetuning-scheduler, which matches the beginning of names, to a pattern."""
    if written.replace(".", "").replace("_", "").isalnum() and written.rpartition(".")[2].endswith(("weight", "bias")):
        return written
    expression = f"(?:{written})" if "|" in written else written
    return f"re:{expression}" if expression.endswith(".*") else f"re:{expression}.*"


def _set_factors(
    stages: Sequence[dict[str, Any]], phases: Sequence[Mapping[str, Any]], base: float, lr: float | None, plan: Plan
) -> None:
    rates = [float(phase.get("lr", base)) for phase in phases]
    for depth, (stage, phase) in enumerate(zip(stages, phases, strict=True)):
        if extra := sorted(set(phase) - {"params", "lr", "max_transition_epoch"}):
            plan.remarks.append(
                f"phase {depth}: {', '.join(extra)} has no counterpart: one optimizer, one LR scheduler"
            )
        if depth and lr is not None and rates[depth] != lr:
            stage["factor"] = rates[depth] / lr
    if lr is None and len(stages) > 1:
        plan.remarks.append(
            f"rates {', '.join(f'{rate:g}' for rate in rates[1:])} of phases 1 to {len(stages) - 1} are absolute there "
            "and factors here: give lr=..., the rate of your optimizer; until then all phases have that rate"
        )


def _starts(ends: Sequence[int]) -> list[int]:
    """The epoch in which each phase starts: at most one phase per epoch, as in finetuning-scheduler."""
    if any(end < 0 for end in ends):
        raise PlanError("epoch_transitions_only needs max_transition_epoch >= 0 in each phase, as finetuning-scheduler")
    starts = [0]
    for end in ends:
        starts.append(max(end, starts[-1] + 1) if len(starts) > 1 or end else end)
    return starts


def _set_limits(stages: Sequence[dict[str, Any]], ends: Sequence[int], plan: Plan) -> None:
    before = 0
    for stage, end in zip(stages, ends, strict=False):
        if end >= 0:
            stage["max_epochs"] = max(end - before, 1)
            before = max(end, before + 1)
    if before:
        plan.remarks.append(
            "max_transition_epoch counts from the start of the run there, and max_epochs from the start of its stage "
            "here: a stage that the metric ends early does not lengthen the next one"
        )


def fine_tune(
    head: str | list[str],
    epochs: int,
    freeze_epochs: int = 1,
    lr_mult: float = 100,
    pct_start: float = 0.3,
    div: float = 5.0,
    *,
    body: list[str] | None = None,
    train_bn: bool = True,
    div_final: float = 1e5,
    moms: Sequence[float] = (0.95, 0.85, 0.95),
    base_lr: float | None = None,
    **others: Any,
) -> list[FreezeCallback]:
    """Callbacks for fastai's `Learner.fine_tune`: one cycle with a frozen body, then one with everything at half rate.

    Give the optimizer `lr=base_lr`, no LR scheduler, and the Trainer `max_epochs=freeze_epochs + epochs`.

    Args:
        head: patterns of the last group of fastai's splitter.
        epochs: epochs of the second cycle.
        freeze_epochs: epochs of the first cycle.
        lr_mult: ratio of the rates of the head and of the layers at the input, in the second cycle.
        pct_start: fraction of the second cycle in which the rate rises.
        div: ratio of the highest and the first rate, in the second cycle.
        body: patterns of the groups between head and input, the group nearest the head first. All other parameters
            form the last group.
        train_bn: whether BatchNorm of the body trains in the first cycle too, as in fastai by default (there at a
            tenth of the head's rate, here at the rate of its group).
        div_final: ratio of the highest and the last rate.
        moms: momentum at the start, at the peak of the rate and at the end; start and end must be equal.
        base_lr: as in fastai; here the optimizer needs it.
        others: other arguments of fastai, which become remarks.

    Raises:
        PlanError: the arguments cannot work.

    Examples:
        >>> [type(callback).__name__ for callback in fine_tune("head", epochs=5)]
        ['GradualUnfreeze', 'LayerwiseLR', 'StageSchedule']
    """
    _check_fine_tune(epochs, freeze_epochs, lr_mult, moms)
    plan = Plan()
    plan.remarks += [f"{name} has no counterpart here" for name in others]
    if base_lr is not None:
        plan.remarks.append(f"base_lr={base_lr} belongs into your optimizer: lr={base_lr}")
    heads = as_strings(head)
    groups = [heads, *([group] for group in body or []), ["*"]]
    frozen = freeze_epochs > 0
    if frozen:
        first = [*(["*", f"!* & {_NO_NORM_OF_FASTAI}"] if train_bn else []), *heads]
        stages = [{"name": "head", "patterns": first}, {"name": "body", "patterns": ["*"]}]
        plan.add("GradualUnfreeze", stages=stages, at=[0, freeze_epochs])
    named = [{"name": f"group {depth}" if depth else "head", "patterns": group} for depth, group in enumerate(groups)]
    if lr_mult != 1:
        plan.add("LayerwiseLR", decay=lr_mult ** (-1 / (len(groups) - 1)), stages=named)
    plan.add(
        "StageSchedule",
        shape="one_cycle",
        warmup=[0.99, pct_start] if frozen else pct_start,
        start_factor=[1 / 25, 1 / div] if frozen else 1 / div,
        peak_factor=[1.0, 0.5] if frozen else 0.5,
        final_factor=1 / div_final,
        momentum=[moms[1], moms[0]],
    )
    return plan.build("fine_tune")


def _check_fine_tune(epochs: int, freeze_epochs: int, lr_mult: float, moms: Sequence[float]) -> None:
    owner = "fine_tune"
    arguments.check_positive(epochs, "epochs", owner)
    arguments.check_positive(freeze_epochs, "freeze_epochs", owner, minimum=0)
    arguments.check_number(lr_mult, "lr_mult", owner)
    if lr_mult < 1:
        raise PlanError(f"{owner}: lr_mult must be at least 1, got {lr_mult}")
    if len(moms) != 3 or moms[0] != moms[2]:
        raise PlanError(f"{owner}: moms={moms} must be three numbers, the first and the last alike")
