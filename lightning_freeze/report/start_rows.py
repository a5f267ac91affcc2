"""The rows of the table at the start. Every parameter is in exactly one row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from lightning_freeze.engine.declarations import Row
from lightning_freeze.engine.modes import is_held
from lightning_freeze.engine.policy import Policy
from lightning_freeze.engine.run_view import RunView, SlotView
from lightning_freeze.model.layers import has_statistics
from lightning_freeze.report.timeline import REST, stage_members
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.stages.naming import ranges

MOST_ROWS = 25


@dataclass(frozen=True)
class Part:
    """Parameters that the table shows in one row.

    Attributes:
        name: the name of the stage.
        names: its parameters.
        when: the trigger, as described by the policies that have a row for it.
        patterns: the patterns, if the name does not show them.
        late: whether it begins after the end of the run.
    """

    name: str
    names: Sequence[str]
    when: str = ""
    patterns: Sequence[str] = ()
    late: bool = False


def parts_of(run: RunView, end: Progress | None = None) -> list[Part]:
    """Divide all parameters into parts: the stages, head first, and the rest at the end.

    Args:
        run: the run.
        end: the last moment of the run; None if it is unknown.
    """
    members = stage_members(run)
    staged = len(members) > 1
    if not staged:  # no policy has stages: a row for each policy's own names
        members = _by_row(run)
    rows = _rows_by_parameter(run, staged)
    return [_part(run, name, names, rows, end) for name, names in members.items()]


def rows_of(run: RunView) -> list[list[Row]]:
    """The rows of each policy; those that bear its title have its number, where one class occurs several times."""
    return [
        [replace(row, name=title) if row.name == policy.title else row for row in policy.rows(run.progress)]
        for policy, title in zip(run.policies, _titles(run.policies), strict=True)
    ]


def _rows_by_parameter(run: RunView, staged: bool) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {name: [] for name in run.index.parameters}
    for rows, binding in zip(rows_of(run), run.bindings, strict=True):
        for row in rows if binding.labels or not staged else ():
            for name in row.names:
                found[name].append(row)
    return found


def _by_row(run: RunView) -> dict[str, list[str]]:
    left = dict.fromkeys(run.index.parameters)
    found: dict[str, list[str]] = {}
    for row in (row for rows in rows_of(run) for row in rows):
        names = [name for name in row.names if name in left]
        for name in names:
            del left[name]
        if names:
            found.setdefault(row.name, []).extend(names)
    return found | ({REST: list(left)} if left else {})


def _part(run: RunView, name: str, names: Sequence[str], rows: dict[str, list[Row]], end: Progress | None) -> Part:
    covering = list({id(row): row for one in names for row in rows[one]}.values())
    timed = [row for row in covering if row.when != "always"] or covering
    staged = any(binding.trains and binding.labels for binding in run.bindings)
    when = _trigger(timed) or ("never" if staged else "always")
    patterns = next((row.patterns for row in covering if row.name == name), ())
    late = end is not None and any(row.start is not None and not row.start.reached(end) for row in covering)
    shown = ranges(patterns)
    return Part(name, names, when, [] if shown == [name] else shown, late)


def _trigger(rows: Sequence[Row]) -> str:
    """The moment when the parameters of all these rows train: the last of their starts, if they can be compared."""
    starts = [row.start for row in rows if row.start is not None]
    if len(starts) == len(rows) > 1 and len({start.unit for start in starts}) == 1:
        return max(zip([start.value for start in starts], [row.when for row in rows], strict=True))[1]
    return " and ".join(dict.fromkeys(row.when for row in rows))


def grouped(parts: Sequence[Part], most: int = MOST_ROWS) -> list[Part]:
    """Join neighbouring parts until there are at most `most`; the first and the last part stay alone."""
    if len(parts) <= most:
        return list(parts)
    first, *between, last = parts
    size = -(-len(between) // (most - 2))
    return [first, *(_group(between[place : place + size]) for place in range(0, len(between), size)), last]


def _group(parts: Sequence[Part]) -> Part:
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return first
    names = ranges([part.name for part in parts])
    name = names[0] if len(names) == 1 else f"{first.name} … {last.name}"
    when = first.when if first.when == last.when else _span(first.when, last.when)
    late = any(part.late for part in parts)
    return Part(f"{name} ({len(parts)})", [one for part in parts for one in part.names], when, (), late)


def _span(first: str, last: str) -> str:
    """`epoch 3` and `epoch 7` -> `epoch 3 to 7`."""
    unit, _, number = first.rpartition(" ")
    other, _, end = last.rpartition(" ")
    return f"{unit} {number} to {end}" if unit and unit == other else f"{first} to {last}"


class Facts:
    """Facts about the parameters of a run, computed once for all, because there can be thousands of stages."""

    def __init__(self, run: RunView) -> None:
        self._run = run
        self.sizes = {name: parameter.numel() for name, parameter in run.index.parameters.items()}
        self.has_factors = any(slot.factor != 1 for slot in run.slots)
        self._slots: dict[str, list[SlotView]] = {}
        for slot in run.slots:
            for name in slot.names:
                self._slots.setdefault(name, []).append(slot)
        self._norms: dict[str, list[int]] = {}
        spans = {id(span.module): span for span in run.index.spans if has_statistics(span.module)}  # a shared one once
        self._modules = {key: span.module for key, span in spans.items()}
        for key, span in spans.items():
            for name in run.index.entries[span.start : span.stop]:
                self._norms.setdefault(name, []).append(key)
        self._titles = _titles(run.policies)
        own = [{name for row in policy.rows(run.progress) for name in row.names} for policy in run.policies]
        self._others = [want.frozen - mine for want, mine in zip(run.wants, own, strict=True)]

    def size(self, names: Iterable[str]) -> int:
        """The number of elements."""
        return sum(self.sizes[name] for name in names)

    def slots(self, names: Iterable[str]) -> list[SlotView]:
        """The optimizer slots that hold them."""
        return list({id(slot): slot for name in names for slot in self._slots.get(name, ())}.values())

    def norms(self, names: Iterable[str]) -> tuple[int, int]:
        """The number of normalisation layers with these parameters, and how many of them are in eval mode."""
        found = [self._modules[key] for key in {key for name in names for key in self._norms.get(name, ())}]
        return len(found), sum(is_held(layer) or not layer.training for layer in found)

    def frozen_by(self, names: Collection[str], *, by_policies: bool = True) -> list[str]:
        """What else freezes any of them now: policies without a row for it, and the user."""
        frozen = set(names) - self._run.trainable
        found = [
            title
            for title, others in zip(self._titles, self._others, strict=True)
            if by_policies and not frozen.isdisjoint(others)
        ]
        return found + ([] if self._run.can_train.issuperset(frozen) else ["you, before the fit"])


def _titles(policies: Sequence[Policy]) -> list[str]:
    """Titles, numbered where one class occurs several times."""
    titles = [policy.title for policy in policies]
    return [
        f"{title} {titles[: place + 1].count(title)}" if titles.count(title) > 1 else title
        for place, title in enumerate(titles)
    ]
