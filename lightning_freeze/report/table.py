"""What a user sees: the table at the start, one line at each change."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich import box
from rich.table import Table

from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Row
from lightning_freeze.engine.modes import is_held
from lightning_freeze.engine.run_view import RunView
from lightning_freeze.model.layers import has_statistics
from lightning_freeze.report.remarks import run_remarks
from lightning_freeze.report.rendering import render, value_range
from lightning_freeze.stages.stage import BoundStage


def start_table(run: RunView) -> str:
    """The table of stages, and what is worth a remark."""
    table = Table(title=f"lightning_freeze: {run.index.model_name}", title_justify="left", box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    table.add_column("stage", no_wrap=True)
    table.add_column("patterns", overflow="fold", min_width=14)
    table.add_column("when", min_width=12, overflow="fold")
    for heading in ("parameters", "share", "trainable\nnow", "lr", "factor"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("norm\nlayers", no_wrap=True)
    table.add_column("frozen by", overflow="fold", min_width=15)
    rows = run.rows
    for row in rows:
        table.add_row(*_cells(run, row))
    if rest := _rest(run, rows):
        table.add_row(*_cells(run, Row(*_name_of_rest(run), rest)))
    table.add_section()
    table.add_row(*_cells(run, Row("all", (), "", list(run.index.parameters))))
    return "\n".join(
        [
            render(table),
            *_remarks(run),
            *run_remarks(run),
            *(line for policy in run.policies for line in policy.remarks()),
        ]
    )


def _rest(run: RunView, rows: Sequence[Row]) -> list[str]:
    named = {name for row in rows for name in row.names}
    return [name for name in run.index.parameters if name not in named] if rows else []


def stages_table(context: Context, bound: Sequence[BoundStage]) -> str:
    """The table of `lightning-freeze stages`: name, parameters, share, normalisation layers; head first."""
    index = context.index
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    table.add_column("patterns", overflow="fold")
    for heading in ("parameters", "share", "norm layers"):
        table.add_column(heading, justify="right")
    total = sum(parameter.numel() for parameter in index.parameters.values())
    layers = {
        id(span.module): span for span in index.spans if has_statistics(span.module)
    }.values()  # a shared one once
    for stage in bound:
        size = sum(index.parameters[name].numel() for name in stage.names)
        norms = sum(not set(index.under(span.name)).isdisjoint(stage.names) for span in layers)
        patterns = "" if stage.patterns == (stage.name,) else "\n".join(stage.patterns)
        table.add_row(stage.name, patterns, f"{size:,}", f"{size / (total or 1):.1%}", str(norms or "-"))
    return f"{index.model_name}: {len(bound)} stages, {total:,} parameters, head first\n{render(table)}"


def _name_of_rest(run: RunView) -> tuple[str, tuple[str, ...], str]:
    staged = any(binding.trains and binding.labels for binding in run.bindings)
    return ("in no stage", (), "never") if staged else ("all others", (), "always")


def _cells(run: RunView, row: Row) -> list[str]:
    sizes = {name: run.index.parameters[name].numel() for name in row.names}
    trainable = sum(size for name, size in sizes.items() if name in run.trainable)
    total = sum(parameter.numel() for parameter in run.index.parameters.values()) or 1
    rates, factors = _rates(run, row.names) if row.when else ("", "")
    return [
        row.name,
        "" if list(row.patterns) == [row.name] else "\n".join(row.patterns),
        row.when,
        f"{sum(sizes.values()):,}",
        f"{sum(sizes.values()) / total:.1%}",
        f"{trainable:,}",
        rates,
        factors,
        _norms(run, set(row.names) or set(run.index.parameters)) if row.names or row.when else "-",
        _frozen_by(run, row.names),
    ]


def _rates(run: RunView, names: Collection[str]) -> tuple[str, str]:
    """The rates and factors of the slots that hold these parameters."""
    wanted = set(names)
    found = [(slot.lr, slot.factor) for slot in run.slots if wanted.intersection(slot.names)]
    rates, factors = sorted({rate for rate, _ in found}), sorted({factor for _, factor in found})
    return value_range(rates, ".2e"), value_range(factors, ".3g")


def _norms(run: RunView, names: Collection[str]) -> str:
    layers = {id(span.module): span for span in run.index.spans if has_statistics(span.module)}.values()
    mine = [span.module for span in layers if set(run.index.entries[span.start : span.stop]) & set(names)]
    held = sum(is_held(layer) or not layer.training for layer in mine)
    if not mine:
        return "-"
    return f"{len(mine)} " + ("eval" if held == len(mine) else "train" if not held else f"({held} eval)")


def _frozen_by(run: RunView, names: Collection[str]) -> str:
    frozen = set(names) - run.trainable
    titles = [
        policy.title for policy, want in zip(run.policies, run.wants, strict=True) if not frozen.isdisjoint(want.frozen)
    ]
    if not run.can_train.issuperset(frozen):
        titles.append("you, before the fit")
    return "\n".join(dict.fromkeys(titles))


def _remarks(run: RunView) -> list[str]:
    """Whether the backward pass runs through frozen layers, as far as the order of the layers is known."""
    order = _from_input(run)
    first = next((place for place, name in enumerate(order) if name in run.trainable), len(order))
    behind = [name for name in order[first:] if name not in run.trainable and name in run.can_train]
    if not behind:
        return []
    module = order[first].rpartition(".")[0] or order[first]
    return [
        f"The backward pass still runs through {len(behind)} frozen parameters (from {behind[0]} on), because {module} "
        "before them trains."
    ]


def _from_input(run: RunView) -> list[str]:
    """Parameters from the input to the head: by the stages where there are any, else in order of registration."""
    staged = [
        row
        for policy, binding in zip(run.policies, run.bindings, strict=True)
        for row in (policy.rows(run.progress) if binding.trains else ())
        if row.name in binding.labels.values()
    ]
    if staged:
        return [name for row in reversed(staged) for name in row.names]
    return list(run.index.parameters)
