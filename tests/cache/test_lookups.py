"""A step looks up each result once, and puts off work whose rows are known."""

from __future__ import annotations

import torch

from lightning_freeze.cache.conditions import conditions
from lightning_freeze.cache.graph import Facts, Kind, Leaf, Op
from lightning_freeze.cache.lookups import Lookups
from lightning_freeze.cache.row_store import Storage
from lightning_freeze.cache.shelf import Shelf


def operation(tensor: torch.Tensor, kind: Kind) -> Op:
    return Op(kind, None, None, [], (Leaf(tensor, 4),), 4, conditions(), None)


def known(values: torch.Tensor) -> Kind:
    kind = Kind((), "stem", 0)
    kind.facts[4] = [Facts((4, 3), (3, 1), torch.float32, torch.device("cpu"), 0)], None
    store = Storage(1 << 12).open((3,), torch.float32)
    assert store is not None
    kind.shelves[0] = Shelf("stem", store, False, print)
    kind.targets[kind, 0] = (0,)
    op = operation(values, kind)
    look = Lookups().look(kind, 0, op.leaves, op)
    assert look is not None
    kind.shelves[0].learn(look, values)
    return kind


def test_work_waits_where_rows_are_known_and_only_there() -> None:
    batch = torch.randn(4, 3)
    kind = known(batch)
    assert Lookups().can_wait(operation(batch[[2, 1, 0, 3]], kind))
    assert not Lookups().can_wait(operation(torch.randn(4, 3), kind))
    assert not Lookups().can_wait(operation(batch, Kind((), "other", 0)))


def test_a_result_is_looked_up_once() -> None:
    batch = torch.randn(4, 3)
    kind = known(batch)
    lookups, op = Lookups(), operation(batch, kind)
    assert lookups.look(kind, 0, op.leaves, op) is lookups.look(kind, 0, op.leaves, op)
    assert lookups.rows == 4
    lookups.clear()
    lookups.look(kind, 0, op.leaves, op)
    assert lookups.rows == 8
