"""What a user sees: the table at the start, one line at each change."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lightning_freeze.context import BoundStage, Context
from lightning_freeze.modes import is_held
from lightning_freeze.policy import Row
from lightning_freeze.reconcile import Change, Reconciler
from lightning_freeze.selection import is_norm

_WIDTH = 130  # at least, and wherever the output is no terminal


def show(text: str) -> None:
    """Print without tearing a progress bar that is on the screen, be it of tqdm or rich."""
    tqdm.write(text)


def start(run: Reconciler) -> str:
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
    rows = [row for policy in run.policies for row in policy.rows(run.progress)]
    for row in rows:
        table.add_row(*_cells(run, row))
    if rest := _rest(run, rows):
        table.add_row(*_cells(run, Row(*_name_of_rest(run), rest)))
    table.add_section()
    table.add_row(*_cells(run, Row("all", (), "", list(run.index.parameters))))
    return "\n".join([render(table), *_remarks(run), *(line for policy in run.policies for line in policy.remarks())])


def _rest(run: Reconciler, rows: Sequence[Row]) -> list[str]:
    named = {name for row in rows for name in row.names}
    return [name for name in run.index.parameters if name not in named] if rows else []


def stages(context: Context, bound: Sequence[BoundStage]) -> str:
    """The table of `lightning-freeze stages`: name, parameters, share, normalisation layers; head first."""
    index = context.index
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    table.add_column("patterns", overflow="fold")
    for heading in ("parameters", "share", "norm layers"):
        table.add_column(heading, justify="right")
    total = sum(parameter.numel() for parameter in index.parameters.values())
    layers = {id(span.module): span for span in index.spans if is_norm(span.module)}.values()  # a shared one once
    for stage in bound:
        size = sum(index.parameters[name].numel() for name in stage.names)
        norms = sum(not set(index.under(span.name)).isdisjoint(stage.names) for span in layers)
        patterns = "" if stage.patterns == (stage.name,) else "\n".join(stage.patterns)
        table.add_row(stage.name, patterns, f"{size:,}", f"{size / (total or 1):.1%}", str(norms or "-"))
    return f"{index.model_name}: {len(bound)} stages, {total:,} parameters, head first\n{render(table)}"


def _name_of_rest(run: Reconciler) -> tuple[str, tuple[str, ...], str]:
    staged = any(binding.trains and binding.labels for binding in run.bindings)
    return ("in no stage", (), "never") if staged else ("all others", (), "always")


def _cells(run: Reconciler, row: Row) -> list[str]:
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


def _rates(run: Reconciler, names: Collection[str]) -> tuple[str, str]:
    """The rates and factors of the slots that hold these parameters."""
    wanted = set(names)
    found = [
        (float(group["lr"]), slot.factor)
        for slotted in run.optimizers
        for slot, group in zip(slotted.slots, slotted.optimizer.param_groups, strict=True)
        if wanted.intersection(slot.names)
    ]
    rates, factors = sorted({rate for rate, _ in found}), sorted({factor for _, factor in found})
    return span(rates, ".2e"), span(factors, ".3g")


def span(values: Sequence[float], form: str) -> str:
    """One value, or the first and the last of several, in order."""
    if not values:
        return "-"
    return format(values[0], form) if len(values) == 1 else f"{values[0]:{form}} to {values[-1]:{form}}"


def _norms(run: Reconciler, names: Collection[str]) -> str:
    layers = {id(span.module): span for span in run.index.spans if is_norm(span.module)}.values()
    mine = [span.module for span in layers if set(run.index.entries[span.start : span.stop]) & set(names)]
    held = sum(is_held(layer) or not layer.training for layer in mine)
    if not mine:
        return "-"
    return f"{len(mine)} " + ("eval" if held == len(mine) else "train" if not held else f"({held} eval)")


def _frozen_by(run: Reconciler, names: Collection[str]) -> str:
    frozen = set(names) - run.trainable
    titles = [
        policy.title for policy, want in zip(run.policies, run.wants, strict=True) if not frozen.isdisjoint(want.frozen)
    ]
    if any(not run.before[name] for name in frozen):
        titles.append("you, before the fit")
    return "\n".join(dict.fromkeys(titles))


def _remarks(run: Reconciler) -> list[str]:
    """Whether the backward pass runs through frozen layers, as far as the order of the layers is known."""
    order = _from_input(run)
    first = next((place for place, name in enumerate(order) if name in run.trainable), len(order))
    behind = [name for name in order[first:] if name not in run.trainable and run.before[name]]
    if not behind:
        return []
    module = order[first].rpartition(".")[0] or order[first]
    return [
        f"The backward pass still runs through {len(behind)} frozen parameters (from {behind[0]} on), because {module} "
        "before them trains."
    ]


def _from_input(run: Reconciler) -> list[str]:
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


def change(run: Reconciler, done: Change) -> str:
    """One line: when, what, and how much trains now."""
    parts = [
        f"{verb} {_places(run, names)}"
        for verb, names in (("unfrozen", done.unfrozen), ("frozen", done.frozen))
        if names
    ]
    if not parts:
        return ""
    trainable = sum(run.index.parameters[name].numel() for name in run.trainable)
    total = sum(parameter.numel() for parameter in run.index.parameters.values())
    where = f"epoch {run.progress.epoch}, step {run.progress.step}"
    return f"{where}: {'; '.join(parts)}; {trainable:,} of {total:,} parameters ({trainable / total:.1%}) train"


def _places(run: Reconciler, names: Sequence[str]) -> str:
    """The stages that these parameters are, in the words of the policy that needs the fewest."""
    divisions = [binding.labels for binding in run.bindings if all(binding.labels.get(name) for name in names)]
    counts = [Counter(labels[name] for name in names) for labels in divisions]
    place = min(range(len(counts)), key=lambda one: len(counts[one]), default=None)
    if place is None or len(counts[place]) > 4:
        return f"{len(names)} parameters ({names[0]}" + (f" to {names[-1]})" if len(names) > 1 else ")")
    whole = Counter(divisions[place].get(name, "") for name, required in run.before.items() if required)
    return ", ".join(
        label if count == whole[label] else f"{count} of {whole[label]} tensors of {label}"
        for label, count in counts[place].items()
    )


def render(table: Table) -> str:
    """A table as text without trailing spaces."""
    out = StringIO()
    Console(file=out, width=max(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def size(count: float) -> str:
    """Bytes with a unit: 1.5 MB is 1,500,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
