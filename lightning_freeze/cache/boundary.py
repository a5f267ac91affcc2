"""Which part of a recorded step can be cached: from an entry, all of whose inputs go into the key, to a boundary, of
which one tensor flows on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from lightning_freeze.cache.recording import CONSTANT, Call, Event, Leaf, Recording, same_random_between, untouched


@dataclass(frozen=True)
class Region:
    """What is skipped when all rows are known.

    Attributes:
        trace: calls and the functions between them that work on what the calls returned, in order; the first is the
            entry, the last the boundary.
        calls: the calls among them.
        chain: each call takes what the one before it returned, so that they can be run for a few rows on their own.
        rows: length of the first dimension of the entry's input and of the boundary's output.
        output: place of the one tensor that flows on among the leaves of what the boundary returns.
        made_of: ids of the parameters and buffers that it uses.
        earlier: how often the entry's module is called before.
        passed: why it does not reach as far as what is frozen; "" if it does.
    """

    trace: tuple[Event, ...]
    calls: tuple[Call, ...]
    chain: bool
    rows: int
    output: int
    made_of: frozenset[int]
    earlier: int = 0
    passed: str = ""

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that are called, in order of their calls."""
        return [call.function for call in self.calls]

    @property
    def leaf(self) -> Leaf:
        """The tensor that flows on."""
        leaf: Leaf = self.calls[-1].result[0][self.output]
        return leaf

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the modules, by which batches of other sizes know that they take the same way."""
        return tuple(call.name for call in self.calls)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What regions agree in that share rows."""
        return self.path, self.leaf.shape[1:], self.leaf.dtype, tuple(leaf.dtype for leaf in self.calls[0].tensors)

    @property
    def seconds(self) -> float:
        """From the entry to the boundary."""
        return self.calls[-1].ended - self.calls[0].began


@dataclass(frozen=True)
class _Flow:
    """What is known between an entry and a boundary: everything, or where it ceases to be."""

    broken: int | None = None  # the clock from which on another entry has to be sought
    why: str = ""
    tainted: frozenset[int] = frozenset()  # what hangs on what the calls returned
    trace: tuple[Event, ...] = ()
    made_of: frozenset[int] = frozenset()


def find_region(notes: Recording) -> tuple[Region | None, str]:
    """The largest part that can be cached, the boundary as late as possible; None, and why, if there is none."""
    if notes.refused:
        return None, notes.refused
    why = ""
    for last in range(len(notes.calls) - 1, -1, -1):
        first, flow, reason = _entry(notes, last)
        if flow is None:
            why = why or reason
            continue
        crossing = _crossing(notes, notes.calls[last], flow)
        region, reason = _region(notes, first, last, flow, crossing)
        if region is not None:
            return (region if not why else Region(**{**vars(region), "passed": why})), why
        why = why or reason
    return None, why


def _entry(notes: Recording, last: int) -> tuple[int, _Flow | None, str]:
    """The first call from which everything up to the last one follows from its inputs."""
    first, why = 0, ""
    while first <= last:
        flow = _follow(notes, first, last)
        if flow.broken is None:
            return first, flow, ""
        why = why or flow.why
        later = next((k for k, call in enumerate(notes.calls) if call.start >= flow.broken and k > first), last + 1)
        first = later
    return first, None, why


def _follow(notes: Recording, first: int, last: int) -> _Flow:
    """Follow the data: `known` hangs on the inputs of the entry alone, `tainted` on what the calls returned."""
    entry, end = notes.calls[first], notes.calls[last].end
    known, tainted, made_of = {CONSTANT, *entry.ins}, set[int](), set[int]()
    trace: list[Event] = []
    inside: dict[int, set[int]] = {}
    items: list[Event] = [event for event in notes.events if entry.start < event.start < end]
    items = sorted([*items, *notes.calls[first : last + 1]], key=lambda item: item.start)
    for item in items:
        if isinstance(item, Call):
            place = notes.calls.index(item)
            if item is not entry and not known.issuperset(item.ins):
                return _Flow(item.start, f"'{item.name}' takes more than what came before it")
            if item.flaw or (item is entry and item.mutates):
                return _Flow(item.end, item.flaw or f"'{item.name}' changes its input in place")
            if item is entry and not untouched(item, given=True):
                return _Flow(item.end, f"what '{item.name}' takes is written into after it")
            if place > first and not same_random_between(notes.calls[place - 1], item):
                return _Flow(item.start, f"random numbers are drawn before '{item.name}'")
            inside[place] = set(item.ins)
            known.update(item.outs)
            tainted.update(item.outs)
            trace.append(item)
        elif item.call is not None:
            call = notes.calls[item.call]
            own = inside.setdefault(item.call, set(call.ins))
            if item.reads and item.ins:
                return _Flow(call.end, f"'{call.name}' reads values ({_name(item)})")
            if not own.union({CONSTANT}).issuperset(item.ins):
                return _Flow(call.end, f"'{call.name}' uses a tensor that is neither its own nor given to it")
            own.update(item.outs)
            tainted.update(item.outs)
            made_of.update(item.made_of)
        elif tainted.isdisjoint(item.ins):
            if known.issuperset(item.ins) and item.ins:
                known.update(item.outs)
        elif item.reads:
            return _Flow(item.end, f"a value is read ({_name(item)}) after '{notes.calls[_before(notes, item)].name}'")
        elif not known.issuperset(item.ins) or (item.writes is not None and item.writes not in tainted):
            return _Flow(
                item.end, f"other data come in ({_name(item)}) after '{notes.calls[_before(notes, item)].name}'"
            )
        else:
            known.update(item.outs)
            tainted.update(item.outs)
            made_of.update(item.made_of)
            trace.append(item)
    return _Flow(tainted=frozenset(tainted), trace=tuple(trace), made_of=frozenset(made_of))


def _before(notes: Recording, event: Event) -> int:
    return max((k for k, call in enumerate(notes.calls) if call.start < event.start), default=0)


def _name(event: Event) -> str:
    return str(getattr(event.function, "__name__", event.function))


def _crossing(notes: Recording, boundary: Call, flow: _Flow) -> set[int]:
    """What hangs on the calls and is used after the boundary."""
    later = [event for event in (*notes.events, *notes.calls) if event.start > boundary.end]
    return {serial for event in later for serial in event.ins if serial in flow.tainted} | (
        notes.returned & flow.tainted
    )


def _region(notes: Recording, first: int, last: int, flow: _Flow, crossing: set[int]) -> tuple[Region | None, str]:
    calls = notes.calls[first : last + 1]
    entry, boundary = calls[0], calls[-1]
    if not any(True for call in calls for _ in call.function.parameters()):
        return None, ""
    if others := crossing - set(boundary.outs):
        source = next((call.name for call in calls if others & set(call.outs)), calls[0].name)
        return (
            None,
            f"more than one tensor flows on past '{boundary.name}': what '{source}' made is used again after it",
        )
    if len(crossing) != 1:
        return None, f"{len(crossing)} tensors that '{boundary.name}' returns are used after it" if crossing else ""
    leaves = boundary.result[0]
    tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Leaf)]
    output = tensors[boundary.outs.index(crossing.pop())]
    leaf, given = leaves[output], entry.tensors
    if not given or not given[0].shape or not leaf.shape or leaf.shape[0] != given[0].shape[0]:
        return None, f"'{boundary.name}' does not return a row for each row that '{entry.name}' takes"
    if 0 in leaf.stride[:1] or any(step == 0 < size - 1 for step, size in zip(leaf.stride, leaf.shape, strict=False)):
        return None, f"'{boundary.name}' returns a tensor that repeats itself in memory"
    earlier = sum(call.function is entry.function for call in notes.calls[:first])
    return Region(
        flow.trace, tuple(calls), _is_chain(flow, calls), given[0].shape[0], output, flow.made_of, earlier
    ), ""


def _is_chain(flow: _Flow, calls: list[Call]) -> bool:
    follows = all(one.outs == other.ins for one, other in pairwise(calls))
    once = len({id(call.function) for call in calls}) == len(calls)
    return follows and once and len(flow.trace) == len(calls) and all(call.alone for call in calls)


def describe(event: Any) -> str:
    """The name of a function or module, for a message."""
    return event.name if isinstance(event, Call) else _name(event)
