"""The preview as text: the table of the run, stages over time with rates, and the memory of each part of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_freeze.errors import FreezeError
from lightning_freeze.preview.memory import OPTIONAL, ROWS, state_per_element
from lightning_freeze.preview.simulation import Preview
from lightning_freeze.report.grid import RULE, Column, grid, paragraph, width_of
from lightning_freeze.report.rendering import screen_width, size, value_range
from lightning_freeze.report.timeline import Sample

_COLUMNS = 8  # if a run has more parts, it is shown in this many equal parts


def text(found: Preview) -> str:
    """The whole preview as text for a terminal."""
    steps = f"{found.epochs} epochs, {found.steps:,} optimizer steps"
    on = f" on each of {found.processes} processes" if found.processes > 1 else ""
    optimizers = ", ".join(type(slotted.optimizer).__name__ for slotted in found.run.optimizers)
    title = f"{steps}{on}, {optimizers}. Highest learning rate of each stage in each part of the run (-: frozen):"
    width = screen_width()
    state = _state(found)
    tables = [_fitting(lambda most: _by_time(found, state, most), width)]
    if found.shares:
        tables.append(_fitting(lambda most: _memory(found, most), width))
        tables += paragraph("Of rank 0, without the parameters that FSDP2 gathers for a layer.", width)
    remarks = [line for text in dict.fromkeys(found.remarks) for line in paragraph(text, width)]
    return "\n".join([found.table, "", *paragraph(title, width), *tables, *remarks])


Table = tuple[list[Column], list[list[str]]]


def _fitting(table: Callable[[int], Table], width: int) -> str:
    """The table with as many parts of the run as fit the screen."""
    columns, rows = table(_COLUMNS)
    for most in range(_COLUMNS - 1, 1, -1):
        if width_of(columns, rows) <= width:
            break
        columns, rows = table(most)
    return grid(columns, rows, width)


def _memory(found: Preview, most: int) -> Table:
    """The memory of one process in each part of the run, by number of processes and strategy."""
    parts = _parts(found, most)
    rows = []
    for (world, sharded), by_count in found.shares.items():
        if world == 1 and sharded:
            continue
        shares = [by_count.get(max(sample.trainable for sample in part)) for part in parts]
        on = "1 process" if world == 1 else f"{world} processes, {'FSDP2' if sharded else 'DDP'}"
        for row in ROWS:
            figures = ["?" if one is None else _size(getattr(one, row)) for one in shares]
            if row not in OPTIONAL or any(figures):
                named = f"{on}: {row}" if row == "total" else f"  {row}"
                rows.append([named, *figures])
    return [Column("memory of one process"), *_heads(parts)], rows


def _size(figure: float | None) -> str:
    return "" if figure is None else size(figure)


def _heads(parts: Sequence[Sequence[Sample]]) -> list[Column]:
    return [Column(f"epoch {part[0].time:.3g}\nstep {part[0].step}", right=True) for part in parts]


def _by_time(found: Preview, state: float | None, most: int) -> Table:
    """Stages over time, with one column per part of the run, at most `most`."""
    parts = _parts(found, most)
    counts = [max(sample.trainable for sample in part) for part in parts]
    columns = [Column("stage"), Column("factor", True, 1, told=False), *_heads(parts)]
    rows = [
        [stage, _factor(found, stage), *[_rate(part, row) for part in parts]]
        for row, stage in enumerate(found.timeline.stages)
    ]
    rows += [
        RULE,
        ["trainable", "", *[f"{count:,}" for count in counts]],
        ["share", "", *[f"{count / (found.timeline.parameters or 1):.1%}" for count in counts]],
        ["gradients", "", *[size(count * _element(found)) for count in counts]],
        ["optimizer state", "", *["?" if state is None else size(count * state) for count in counts]],
    ]
    return columns, rows


def _parts(found: Preview, most: int) -> list[list[Sample]]:
    """The samples between changes, or in equal parts of the run if there are many changes."""
    samples = found.timeline.samples
    starts = [0, *(place for place, sample in enumerate(samples) if place and sample.change)]
    if len(starts) > most:
        first, length = samples[0].time, (found.timeline.end - samples[0].time) / most
        bounds = [first + part * length for part in range(most)]
        starts = sorted({next((k for k, one in enumerate(samples) if one.time >= bound), 0) for bound in bounds})
    return [samples[start:stop] for start, stop in zip(starts, [*starts[1:], len(samples)], strict=True)]


def _rate(part: Sequence[Sample], row: int) -> str:
    rates = [rate for sample in part if (rate := sample.rates[row]) is not None]
    return f"{max(rates):.2e}" if rates else "-"


def _factor(found: Preview, stage: str) -> str:
    factors = {
        slot.factor for slotted in found.run.optimizers for slot in slotted.slots if (slot.label or "rest") == stage
    }
    return value_range(sorted(factors), ".3g")


def _element(found: Preview) -> float:
    """The average number of bytes per element of a gradient."""
    if found.bytes_each is not None:
        return float(found.bytes_each)
    parameters = found.run.index.parameters.values()
    return sum(one.numel() * one.element_size() for one in parameters) / (found.timeline.parameters or 1)


def _state(found: Preview) -> float | None:
    """The bytes of optimizer state per trainable element; None if unknown."""
    dtype = next(iter(found.run.index.parameters.values())).dtype
    try:
        each = max(state_per_element(slotted.optimizer, dtype) for slotted in found.run.optimizers)
    except FreezeError as error:
        found.remarks.append(str(error))
        return None
    return each * (found.bytes_each or dtype.itemsize) / dtype.itemsize
