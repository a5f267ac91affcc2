"""Rows are found for batches of a size for which their bits are known to hold."""

from __future__ import annotations

from lightning_freeze.cache.row_index import EVIDENCE, RowIndex
from lightning_freeze.cache.row_store import Entry


def index() -> RowIndex:
    made = RowIndex()
    made.add(8, [((1, 1), Entry(0, 0, 0)), ((2, 2), Entry(1, 0, 1))])
    return made


def test_another_size_is_another_matter_until_it_is_compared() -> None:
    found = index()
    assert found.find(8, [(1, 1)]) != [None]
    assert found.find(3, [(1, 1)]) == [None]
    found.compared(3, 8, 0, EVIDENCE - 1)
    assert found.find(3, [(1, 1)]) == [None]
    found.compared(3, 8, 0, 1)
    assert found.find(3, [(1, 1), (2, 2)]) == [Entry(0, 0, 0), Entry(1, 0, 1)]
    assert found.same(3, 8)
    assert found.proven(3, 0)
    assert not found.proven(3, 1)


def test_sizes_that_differ_stay_apart_whatever_they_are_joined_with() -> None:
    found = index()
    found.compared(3, 8, 0, 0)
    assert found.apart(3, 8)
    found.compared(8, 16, 0, EVIDENCE)
    assert found.apart(3, 16)
    assert found.others(3) == []


def test_proof_is_of_a_size_and_a_level() -> None:
    found = index()
    found.confirmed(8, 1, EVIDENCE)
    assert found.proven(8, 1)
    assert not found.proven(8, 0)
    assert not found.proven(4, 1)


def test_a_row_that_is_gone_is_not_found() -> None:
    found = index()
    found.remove(8, [(1, 1)])
    assert found.find(8, [(1, 1), (2, 2)]) == [None, Entry(1, 0, 1)]
    assert len(found) == 1
