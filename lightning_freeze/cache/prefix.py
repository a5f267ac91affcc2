"""Outputs of a frozen prefix, computed once per distinct input row and used again.

A `PrefixCache` finds by itself, in the first step, which part of the model is frozen and deterministic, and where one
tensor flows on from it. It keeps the rows of that tensor under a checksum of the rows that went in, and skips the work
where all rows are known. It serves rows only where they have the bits that computing them would give: what it cannot
prove it compares, and what does not compare equal turns it off.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_freeze.cache.boundary import Region, find_region
from lightning_freeze.cache.guard import Guard
from lightning_freeze.cache.promise import Diverged
from lightning_freeze.cache.recording import OPAQUE, Recorder, leaf_of, random_state, restore_random, untouched
from lightning_freeze.cache.row_index import RowIndex
from lightning_freeze.cache.row_keys import row_keys
from lightning_freeze.cache.row_store import Entry, Key, RowStore
from lightning_freeze.cache.serving import Step, promised
from lightning_freeze.errors import PlanError
from lightning_freeze.model.fingerprint import parts_of
from lightning_freeze.model.index import ModelIndex, is_compiled

_SHAPES = 16  # batches of at most so many different shapes are recorded
_RESTLESS = 20  # changes of the prefix without a hit between them, after which it is left alone


@dataclass(frozen=True)
class Storage:
    """Where rows are kept.

    Attributes:
        max_bytes: of all rows; where processes share a file, of all of them together.
        dir: the folder of the file; None: memory.
        token: names the run, the same in all its processes.
        rank, ranks: of the processes of this node.
    """

    max_bytes: int
    dir: Path | None = None
    token: str = ""
    rank: int = 0
    ranks: int = 1

    def open(self, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> RowStore:
        """Room for rows of one boundary; `what` tells it from others, alike in all processes."""
        if self.dir is None:
            return RowStore(shape, dtype, self.max_bytes)
        name = hashlib.sha256(f"{self.token} {platform.node()} {what}".encode()).hexdigest()[:24]
        path = self.dir / f"lightning-freeze-{name}.rows"
        return RowStore(shape, dtype, self.max_bytes, path, self.rank, self.ranks)


@dataclass
class Tally:
    """What the cache has done since the boundary is where it is: rows looked for and found, seconds of work skipped."""

    rows: int = 0
    hits: int = 0
    seconds: float = 0.0
    before: bool = False  # rows were there when the epoch began
    epoch_found: int = 0
    epoch_rows: int = 0


@dataclass
class _Batch:
    """The rows of a batch on their way through a step."""

    keys: list[Key]
    entries: list[Entry | None]
    began: float
    hits: int = 0
    filled: Tensor | None = None
    trial: tuple[int, Tensor, Callable[[Tensor], Tensor]] | None = None  # a smaller batch to compare with the whole

    @property
    def known(self) -> list[int]:
        return [place for place, entry in enumerate(self.entries) if entry is not None]

    @property
    def missing(self) -> list[int]:
        return [place for place, entry in enumerate(self.entries) if entry is None]

    @property
    def level(self) -> str:
        """'same': exactly a batch that was computed as it is, in its order; 'moved': rows of several, or moved."""
        batches = {entry.batch for entry in self.entries if entry is not None}
        still = all(entry is not None and entry.place == place for place, entry in enumerate(self.entries))
        return "same" if still and len(batches) == 1 else "moved"


@dataclass
class _Shelf:
    """The rows of one boundary, and what is known about them."""

    kind: Any
    store: RowStore
    index: RowIndex = field(default_factory=RowIndex)
    batches: int = 0


class PrefixCache:
    """Runs training steps, skipping what is frozen where it can.

    Args:
        model: the module that is trained; everything below it is looked at.
        storage: where rows are kept, and how many.
        verify: compare cached rows with computed ones before they are used, once per boundary and batch size.
        say: is told what the cache does, a line at a time.
        warn: is told why it does not.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16).requires_grad_(False).eval(), nn.Linear(16, 2))
        >>> cache = PrefixCache(model, Storage(1 << 20), say=lambda text: None)
        >>> batch = torch.randn(4, 8)
        >>> losses = [cache.run(lambda x: model(x).sum(), batch).item() for _ in range(3)]
        >>> cache.tally.hits, losses[0] == losses[2]
        (4, True)
        >>> cache.close()
    """

    def __init__(
        self,
        model: nn.Module,
        storage: Storage,
        verify: bool = True,
        say: Callable[[str], None] = print,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.model, self.storage, self.verify = model, storage, verify
        self.say, self.warn = say, warn
        self.off = ""
        self.tally = Tally()
        self._index = ModelIndex(model)
        self._parameters = list(self._index.parameters.values())
        self._opaque = [span.module for span in self._index.spans if isinstance(span.module, OPAQUE)]
        self._traces: dict[Any, Region | None] = {}
        self._flags: list[bool] = []
        self._guard: Guard | None = None
        self._ignored: set[tuple[int, str]] = set()
        self._shelf: _Shelf | None = None
        self._batch: _Batch | None = None
        self._region: Region | None = None
        self._restless = 0
        self._told = ""
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of a model or a callback leaves the cache behind

    # ---- steps

    def run(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `step(*args, **kwargs)`; the result, and all that it does, is as without the cache."""
        if self.off:
            return step(*args, **kwargs)
        self._look_around()
        if self.off:
            return step(*args, **kwargs)
        shapes = _shapes((args, kwargs))
        if shapes not in self._traces:
            if len(self._traces) >= _SHAPES:
                return step(*args, **kwargs)
            return self._record(shapes, step, args, kwargs)
        region = self._traces[shapes]
        if region is None:
            return step(*args, **kwargs)
        return self._follow(region, step, args, kwargs)

    def _look_around(self) -> None:
        """Forget everything when what trains has changed, or what is frozen was written."""
        flags = [parameter.requires_grad for parameter in self._parameters]
        if flags != self._flags:
            self.forget()
            self._flags = flags
        elif self._guard is not None and (why := self._guard.broken()):
            self._restless = 0 if self.tally.hits else self._restless + 1
            self.forget()
            if self._restless > _RESTLESS:
                self.turn_off(f"{why} in every step")
            elif self._restless <= 1:
                self.say(f"FeatureCache: {why} in the frozen part by somebody else; the rows of it are dropped")

    def _device(self) -> torch.device | None:
        return self._parameters[0].device if self._parameters else None

    def _record(self, shapes: Any, step: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if compiled := next((span.name for span in self._index.spans if is_compiled(span.module)), None):
            self.turn_off(f"'{compiled}' is compiled, and what is compiled into one piece cannot be skipped in parts")
            return step(*args, **kwargs)
        recorder = Recorder(self._index, self._device())
        guard = Guard([span.module for span in self._index.spans[1:]], ignore=self._ignored)
        with recorder.watching():
            result = step(*args, **kwargs)
        notes = recorder.finish(result)
        self._ignored |= guard.changed_attributes()
        region, why = find_region(notes)
        self._traces[shapes] = region
        if region is not None:
            self._begin(region)
        self._tell(region, why)
        if region is not None and not self.off:
            self._keep_recorded(region)
        for call in notes.calls:
            call.held = [], [], []
        return result

    def _begin(self, region: Region) -> None:
        if self._shelf is None:
            leaf = region.leaf
            try:
                store = self.storage.open(leaf.shape[1:], leaf.dtype, f"{region.kind} {self._digest(region)}")
            except (PlanError, OSError, OverflowError) as error:
                self.turn_off(str(error))
                return
            self._shelf = _Shelf(region.kind, store)
        touched = [t for t in (*self._parameters, *self._index.buffers.values()) if id(t) in region.made_of]
        modules = dict.fromkeys([*(self._guard.watched if self._guard else ()), *region.modules])
        tensors = {id(t): t for t in [*(self._guard.tensors if self._guard else ()), *touched]}
        self._guard = Guard(modules, tensors.values(), self._ignored)

    def _digest(self, region: Region) -> str:
        """The same in processes whose prefixes are the same."""
        tensors = [t for module in region.modules for t in (*module.parameters(), *module.buffers())]
        flat = [part.detach().reshape(-1)[:8].double().cpu() for t in tensors for part in parts_of(t)]
        return hashlib.sha256(torch.cat(flat).numpy().tobytes() if flat else b"").hexdigest()

    def _keep_recorded(self, region: Region) -> None:
        """The rows of the step that was recorded are computed, so they are kept, unless somebody wrote on them."""
        entry, boundary = region.calls[0], region.calls[-1]
        if untouched(boundary, given=False) and self._fits(region):
            self._region = region
            place = next(place for place, leaf in enumerate(boundary.result[0]) if leaf is region.leaf)
            order = [k for k, leaf in enumerate(boundary.result[0]) if isinstance(leaf, type(region.leaf))]
            self._look_up(entry.held[0])
            self.learn(boundary.held[1][order.index(place)])

    def _fits(self, region: Region) -> bool:
        return self._shelf is not None and self._shelf.kind == region.kind

    def _follow(self, region: Region, step: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not self._fits(region):
            return step(*args, **kwargs)
        self._region = region
        before = random_state(self._device())
        attempt = Step(region, self, self._opaque)
        try:
            with attempt.following():
                result = step(*args, **kwargs)
            if attempt.served and promised(result):
                raise Diverged(f"training_step returns or logs a value from before '{region.calls[-1].name}'")
        except Exception as error:
            if not attempt.served:
                raise
            restore_random(before, self._device())
            self.turn_off(f"a step did other things than the one that was recorded: {error}")
            return step(*args, **kwargs)
        finally:
            self._batch = None
        return result

    # ---- rows, as a Step asks for them

    def _look_up(self, given: list[Tensor]) -> _Batch:
        assert self._shelf is not None
        began = perf_counter()
        size = given[0].shape[0]
        keys = [(int(a), int(b)) for a, b in row_keys(given, size).tolist()]
        for key, computed_in, entry in self._shelf.store.news():
            self._shelf.index.add(computed_in, [(key, entry)])
        self._batch = _Batch(keys, self._shelf.index.find(size, keys), began)
        self.tally.rows += size
        self.tally.epoch_rows += size
        self.tally.epoch_found += len(self._batch.known)
        return self._batch

    def rows(self, given: list[Tensor], compute: Callable[[Tensor], Tensor] | None) -> Tensor | None:
        """What flows on past the boundary for these inputs; None: it has to be computed."""
        batch = self._look_up(given)
        if not batch.known or not self._trusted(batch):
            return None
        batch.hits = len(batch.known)
        if batch.missing and (compute is None or not self._fill(batch, given[0], compute)):
            return None
        return self._served(batch)

    def _trusted(self, batch: _Batch) -> bool:
        assert self._shelf is not None
        return not self.verify or self._shelf.index.proven(len(batch.keys), batch.level)

    def _served(self, batch: _Batch) -> Tensor:
        assert self._shelf is not None
        assert self._region is not None
        leaf = self._region.leaf
        stored = self._shelf.store.get([entry.slot for entry in batch.entries if entry is not None])
        if batch.filled is None and leaf_of(stored) == leaf:
            rows = stored
        else:
            rows = torch.empty_strided(leaf.shape, leaf.stride, dtype=leaf.dtype, device=leaf.device)
            rows[batch.known] = stored.to(leaf.device)
            if batch.filled is not None:
                rows[batch.missing] = batch.filled
        share = batch.hits / len(batch.keys)
        self.tally.hits += batch.hits
        self.tally.seconds += share * self._region.seconds - (perf_counter() - batch.began)
        return rows

    def _fill(self, batch: _Batch, given: Tensor, compute: Callable[[Tensor], Tensor]) -> bool:
        """Compute the missing rows on their own, in a batch of a size known to give the same bits."""
        assert self._shelf is not None
        size, index = len(batch.keys), self._shelf.index
        places = batch.missing
        few = self._few(size, len(places))
        if few is None:
            return False
        some = given[[*places, *places[-1:] * (few - len(places))]]
        if not index.same(few, size):
            batch.trial = few, some, compute
            return False
        values = compute(some)[: len(places)]
        self._insert(batch, places, values, few)
        batch.filled = values
        return True

    def _few(self, size: int, missing: int) -> int | None:
        """The smallest batch for so many rows, in steps of an eighth, that may give the bits of the whole one."""
        assert self._shelf is not None
        step = -(-size // 8)
        sizes = range(-(-missing // step) * step, size, step)
        return next((few for few in sizes if not self._shelf.index.apart(few, size)), None)

    def learn(self, rows: Tensor) -> None:
        """Compare what has been computed with what is stored, and store what is not."""
        batch, shelf = self._batch, self._shelf
        if batch is None or shelf is None:
            return
        rows = rows.detach()
        self._compare(batch, rows)
        if self.off:
            return
        if batch.missing:
            self._try(batch, rows)  # first: rows may be known once sizes are compared
            self._compare_sizes(batch, rows)
            self._insert(batch, batch.missing, rows[batch.missing], len(batch.keys))

    def _compare(self, batch: _Batch, rows: Tensor) -> None:
        assert self._shelf is not None
        assert self._region is not None
        known, level = batch.known, batch.level
        if not known or not self.verify or self._trusted(batch):
            return
        stored = self._shelf.store.get([entry.slot for entry in batch.entries if entry is not None])
        if not same_bits(rows[known], stored.to(rows.device)):
            others = "in another batch" if level == "moved" else "a second time"
            self.turn_off(
                f"'{self._region.calls[-1].name}' gives a row other values when it is computed {others}", alarm=True
            )
            return
        self._shelf.index.confirmed(len(batch.keys), level, stored.numel())

    def _compare_sizes(self, batch: _Batch, rows: Tensor) -> None:
        """Are rows of batches of another size the same? Then they are there for this size too."""
        assert self._shelf is not None
        index, size = self._shelf.index, len(batch.keys)
        for other in index.others(size):
            found = [(place, entry) for place, entry in enumerate(index.find(other, batch.keys)) if entry is not None]
            if found:
                stored = self._shelf.store.get([entry.slot for _, entry in found]).to(rows.device)
                equal = same_bits(rows[[place for place, _ in found]], stored)
                index.compared(size, other, stored.numel(), equal)
        batch.entries = index.find(size, batch.keys)

    def _try(self, batch: _Batch, rows: Tensor) -> None:
        """Does a smaller batch give the rows that were missing the same bits? Then it will do the next time."""
        if batch.trial is not None and self._shelf is not None:
            few, some, compute = batch.trial
            values, wanted = compute(some)[: len(batch.missing)].detach(), rows[batch.missing]
            self._shelf.index.compared(few, len(batch.keys), wanted.numel(), same_bits(values, wanted))

    def _insert(self, batch: _Batch, places: list[int], rows: Tensor, size: int) -> None:
        assert self._shelf is not None
        shelf = self._shelf
        number = shelf.batches * self.storage.ranks + self.storage.rank
        shelf.batches += 1
        keys = [batch.keys[place] for place in places]
        slots = shelf.store.put(keys, rows, size, number, places)
        shelf.index.add(
            size, [(key, Entry(slot, number, place)) for key, slot, place in zip(keys, slots, places, strict=False)]
        )

    def _tell(self, region: Region | None, why: str) -> None:
        if region is not None and not self.off and not self._told:
            self._told = region.calls[-1].name
            start = region.calls[0].name
            first = "" if start == self._told else f", from '{start}' on"
            self.say(f"FeatureCache: what comes out of '{self._told}' is kept{first}")
        if why and why not in self._warned:
            self._warned.add(why)
            what = "does less than it could" if region is not None else "has nothing to keep"
            self.warn(f"FeatureCache {what}: {why}.")

    # ---- epochs and the end

    def epoch_end(self) -> None:
        """Turn off when a whole epoch that began with rows found none of them: the inputs are new each time."""
        tally = self.tally
        if not self.off and tally.before and tally.epoch_rows and not tally.epoch_found:
            self.turn_off("no row came a second time in a whole epoch; inputs seem to be augmented at random")
        tally.before = self._shelf is not None and bool(self._shelf.store.bytes)
        tally.epoch_found = tally.epoch_rows = 0

    def forget(self) -> None:
        """Drop all rows and records; the next step looks for the boundary anew."""
        self.report()
        if self._shelf is not None:
            self._shelf.store.close()
        self._shelf = self._guard = self._region = self._batch = None
        self._traces.clear()
        self._told = ""
        self.tally = Tally()

    def report(self) -> None:
        """Say what was saved since the boundary is where it is."""
        if self._shelf is not None and self.tally.rows and self._told:
            tally, size = self.tally, self._shelf.store.bytes
            self.say(
                f"FeatureCache, up to '{self._told}': {tally.hits:,} of {tally.rows:,} rows served, "
                f"{size / 2**20:.1f} MiB kept, about {max(tally.seconds, 0.0):.1f} s saved"
            )

    def turn_off(self, why: str, alarm: bool = True) -> None:
        """Stay out of the way for the rest of the run."""
        self.forget()
        self.off = why
        if alarm:
            self.warn(f"FeatureCache is off: {why.removesuffix('.')}.")

    def close(self) -> None:
        """Give memory and files back. A closed cache runs steps as they are."""
        self.forget()
        self.off = self.off or "closed"


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype are equal bit for bit: NaN equals itself, and 0 is not -0."""
    return torch.equal(*(t.contiguous().view(torch.uint8) if t.dim() else t for t in (one, other)))


def _shapes(arguments: Any) -> Any:
    leaves, tree = tree_flatten(arguments)
    shapes = [(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]
    return str(tree), tuple(shapes)
