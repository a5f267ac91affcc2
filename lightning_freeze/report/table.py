"""The table of a run at its start, and the table of `lightning-freeze stages`."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Row
from lightning_freeze.engine.run_view import RunView
from lightning_freeze.model.layers import has_statistics
from lightning_freeze.report.backward import backward_remarks
from lightning_freeze.report.grid import RULE, Column, grid, paragraph
from lightning_freeze.report.remarks import run_remarks
from lightning_freeze.report.rendering import percent, screen_width, value_range
from lightning_freeze.report.start_rows import Facts, Part, grouped, parts_of, rows_of
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.stages.naming import ranges
from lightning_freeze.stages.stage import BoundStage

_COLUMNS = [
    Column("stage"),
    Column("when"),
    Column("parameters", right=True),
    Column("share", right=True),
    Column("now", yields=1, told=False),  # the title says how much trains
    Column("base lr", right=True),
    Column("factor", right=True, yields=3, told=False),  # the rates have it in them
    Column("norm\nlayers", yields=2),
    Column("frozen by", yields=4),
    Column("patterns", yields=5),
]
_TRIGGER, _REPEATED = 24, 16  # longer triggers stand below the table; of those that several rows share, shorter ones


def start_table(run: RunView, end: Progress | None = None, width: int | None = None) -> str:
    """The table of stages, with remarks.

    Args:
        run: the run at its start.
        end: the last moment of the run; rows after it are marked. None if it is unknown.
        width: characters in a line; None: the width of the screen.
    """
    parts, facts = grouped(parts_of(run, end)), Facts(run)
    shares = percentages([facts.size(part.names) for part in parts])
    rows = [_cells(run, part, share, facts) for part, share in zip(parts, shares, strict=True)]
    rows += [RULE, _cells(run, Part("all", list(run.index.parameters)), "100.0%", facts)]
    beside = [_beside(run, row, facts) for row in _unlabelled(run, parts)]
    rows += [RULE, *beside] if beside else []
    notes = _shorten_triggers(rows)
    if any(part.late for part in parts):
        notes.append("! begins after the end of the run")
    width = width or screen_width()
    title = _title(run.index.model_name, facts.size(run.trainable), facts.size(facts.sizes), width)
    of_policies = [line for policy in run.policies for line in policy.remarks()]
    remarks = [*notes, *run.remarks, *backward_remarks(run), *run_remarks(run), *of_policies]
    wrapped = [line for text in remarks for remark in text.splitlines() for line in paragraph(remark, width)]
    return "\n".join([*title, grid(_COLUMNS, rows, width), *wrapped])


def _title(model: str, trains: int, total: int, width: int) -> list[str]:
    """What the table is about: in one line, else with the figures on a line of their own."""
    parts = f"lightning_freeze: {model}", f"{trains:,} of {total:,} parameters ({percent(trains, total)}) train now"
    whole = ", ".join(parts)
    return [whole] if len(whole) <= width else [parts[0], f"  {parts[1]}"]


def percentages(sizes: Sequence[int]) -> list[str]:
    """Percentages with one decimal that add up to 100.0%: the largest remainders are rounded up."""
    total = sum(sizes) or 1
    tenths = [size * 1000 // total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda place: -(sizes[place] * 1000 % total))
    for place in order[: 1000 - sum(tenths)] if sum(sizes) else []:
        tenths[place] += 1
    return [f"{tenth / 10:.1f}%" for tenth in tenths]


def _cells(run: RunView, part: Part, share: str, facts: Facts) -> list[str]:
    size, trains = facts.size(part.names), facts.size(run.trainable.intersection(part.names))
    now = "trains" if trains == size else "frozen" if not trains else f"{trains / size:.0%}"
    slots = facts.slots(part.names) if part.when else []  # not of all together
    rates, factors = sorted({slot.base_lr for slot in slots}), sorted({slot.factor for slot in slots})
    return [
        part.name,
        part.when + (" !" if part.late else ""),
        f"{size:,}",
        share,
        now if part.when else "",
        value_range(rates, ".2e") if part.when else "",
        value_range(factors, ".3g") if part.when and facts.has_factors else "",
        _norms(*facts.norms(part.names)),
        ", ".join(facts.frozen_by(part.names, by_policies=part.when != "never")) if part.when else "",
        " ".join(part.patterns),
    ]


def _unlabelled(run: RunView, parts: Sequence[Part]) -> list[Row]:
    """Rows of policies without stages of their own, which apply across stages."""
    shown = {part.name for part in parts}
    return [
        row
        for rows, binding in zip(rows_of(run), run.bindings, strict=True)
        if not binding.labels
        for row in rows
        if row.name not in shown
    ]


def _beside(run: RunView, row: Row, facts: Facts) -> list[str]:
    size = facts.size(row.names)
    norms = facts.norms(row.names or run.index.parameters)
    patterns = "" if list(row.patterns) == ["*"] else " ".join(ranges(row.patterns))
    return [row.name, row.when, f"{size:,}" if size else "", "", "", "", "", _norms(*norms), "", patterns]


def _norms(count: int, held: int) -> str:
    if not count:
        return ""
    return f"{count} eval" if held == count else f"{count} train" if not held else f"{count} ({held} eval)"


def _shorten_triggers(rows: Sequence[list[str]]) -> list[str]:
    """Replace long triggers by (a), (b), ... in place, and return the notes that explain them."""
    texts = [row[1].removesuffix(" !") if row else "" for row in rows]
    longest = dict.fromkeys(text for text in texts if len(text) > (_REPEATED if texts.count(text) > 1 else _TRIGGER))
    keys = {text: f"({chr(ord('a') + place % 26)})" for place, text in enumerate(longest)}
    for row, text in zip(rows, texts, strict=True):
        if text in keys:
            row[1] = row[1].replace(text, keys[text])
    return [f"{key} {text}" for text, key in keys.items()]


def stages_table(context: Context, bound: Sequence[BoundStage], width: int | None = None) -> str:
    """The table of `lightning-freeze stages`: name, parameters, share, normalisation layers; head first.

    Args:
        context: the context of the model.
        bound: its stages.
        width: characters in a line; None: the width of the screen.
    """
    index = context.index
    layers = {
        id(span.module): span for span in index.spans if has_statistics(span.module)
    }.values()  # a shared one once
    of_layer: dict[str, list[int]] = {}
    for place, span in enumerate(layers):
        for name in index.under(span.name):
            of_layer.setdefault(name, []).append(place)
    sizes = [sum(index.parameters[name].numel() for name in stage.names) for stage in bound]
    rows = []
    for stage, size, share in zip(bound, sizes, percentages(sizes), strict=True):
        norms = len({place for name in stage.names for place in of_layer.get(name, ())})
        patterns = "" if stage.patterns == (stage.name,) else " ".join(ranges(stage.patterns))
        rows.append([stage.name, f"{size:,}", share, str(norms or "-"), patterns])
    total = sum(parameter.numel() for parameter in index.parameters.values())
    columns = [Column("stage"), Column("parameters", True), Column("share", True), Column("norm layers", True)]
    table = grid([*columns, Column("patterns", yields=1)], rows, width or screen_width())
    return f"{index.model_name}: {len(bound)} stages, {total:,} parameters, head first\n{table}"
