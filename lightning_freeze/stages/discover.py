"""Discover the stages of a model, from the head to the input, with each parameter in exactly one stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_freeze.errors import PlanError
from lightning_freeze.model.dry_run import without_collection
from lightning_freeze.model.index import ModelIndex, check_initialized
from lightning_freeze.stages.blocks import units_of
from lightning_freeze.stages.levels import levels_of
from lightning_freeze.stages.naming import stage_name
from lightning_freeze.stages.patterns_for import patterns_for
from lightning_freeze.stages.stage import Stage
from lightning_freeze.stages.units import Level, balance, join
from lightning_freeze.stages.usage import Usage, record_usage

MAX_STAGES = 40


def discover_stages(model: nn.Module, example_input: object = None, max_stages: int | None = None) -> list[Stage]:
    """Discover the stages of a model, head first, with every parameter in exactly one stage.

    Parameters are ordered by their first use in one forward. Each repeated block becomes a stage; small neighbours
    join a block; tokens and position embeddings of a parent module join the stem; heads that work side by side share
    a stage; a tied parameter belongs to the stage nearest the input.

    Args:
        model: any module. The forward runs in eval mode without gradients; modes, buffers and random state are
            restored afterwards.
        example_input: a tensor (one argument), a tuple or list (positional arguments) or a dict (keyword arguments).
            None uses `model.example_input_array` or, if there is none, the order of registration.
        max_stages: maximum number of stages; None: 40. Neighbours are merged so that parameter counts are balanced;
            with three stages or more, the head stays a stage of its own.

    Raises:
        PlanError: the forward raised, a parameter is not initialized, or `max_stages` is below 1.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
        >>> for stage in discover_stages(model, torch.zeros(1, 3, 8, 8)):
        ...     print(stage.name, stage.patterns)
        3 ['3']
        0 ['0', '1']
    """
    return stages_of(ModelIndex(model), example_input, max_stages)


@without_collection()
def stages_of(index: ModelIndex, example_input: object = None, max_stages: int | None = None) -> list[Stage]:
    """`discover_stages` for an existing index."""
    check_most(max_stages)
    check_initialized(index, "discover_stages")
    if not index.parameters:
        return []
    usage = usage_of(index, example_input)
    return stages_from(index, join(*levels_of(units_of(index, usage), usage)), max_stages)


def stages_from(index: ModelIndex, levels: list[Level], max_stages: int | None) -> list[Stage]:
    """Turn levels, input first, into at most `max_stages` stages, head first."""
    levels = balance(levels, min(max_stages or MAX_STAGES, MAX_STAGES))
    patterns = [patterns_for(index, level.names) for level in levels]
    return [Stage(*named) for named in zip(_names(levels, patterns, index), patterns, strict=True)][::-1]


def check_most(max_stages: int | None) -> None:
    """Refuse an invalid maximum number of stages.

    Raises:
        PlanError: it is not a whole number of at least 1.
    """
    if max_stages is not None and (isinstance(max_stages, bool) or not isinstance(max_stages, int) or max_stages < 1):
        raise PlanError(f"discover_stages: max_stages must be a whole number of at least 1, got {max_stages!r}")


def usage_of(index: ModelIndex, example_input: object = None) -> Usage:
    """The usage in a forward with the given input or `example_input_array`; empty without an input."""
    if example_input is not None:
        return record_usage(index, example_input)
    attribute = getattr(index.modules[""].module, "example_input_array", None)
    return Usage() if attribute is None else record_usage(index, attribute, "model.example_input_array")


def _names(levels: Sequence[Level], patterns: Sequence[Sequence[str]], index: ModelIndex) -> list[str]:
    """Unique names for levels, valid in metric names: the module, or the first and the last module."""
    names: list[str] = []
    for level, listed in zip(levels, patterns, strict=True):
        whole = len(listed) == 1 and listed[0] in index.modules
        name = stage_name(listed) if whole else _range([stage_name([label]) for label in level.labels])
        while name in names:
            name += "_"
        names.append(name)
    return names if len(names) > 1 else [type(index.modules[""].module).__name__]


def _range(labels: Sequence[str]) -> str:
    """A range of two names without repeating their common prefix: `layers.0-5`, `model.layer3.4..layer4.0`."""
    first, last = labels[0].split("."), labels[-1].split(".")
    shared = next((k for k, (a, b) in enumerate(zip(first[:-1], last[:-1], strict=False)) if a != b), None)
    common = min(len(first), len(last)) - 1 if shared is None else shared
    counted = first[:-1] == last[:-1] and first[-1].isdecimal() and last[-1].isdecimal()
    return labels[0] if first == last else f"{labels[0]}{'-' if counted else '..'}{'.'.join(last[common:])}"
