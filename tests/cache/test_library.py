"""Kinds and their rows are kept, forgotten together, and shown to others when the weights are what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze.cache.folder import Folder
from lightning_freeze.cache.graph import Facts
from lightning_freeze.cache.library import Library
from lightning_freeze.cache.row_store import Room, Storage

FACTS = Facts((4, 3), (3, 1), torch.float32, torch.device("cpu"), 0)


def library(room: Room | None = None) -> tuple[Library, list[str]]:
    warned: list[str] = []
    return Library(room or Storage(1 << 16), True, warned.append, {}), warned


def test_a_kind_goes_with_what_it_is_made_of() -> None:
    found, _ = library()
    first = found.kind("a", "stem", 1, ())
    second = found.kind("b", "mid", 2, (first,))
    assert found.kind("a", "stem", 1, ()) is first
    assert found.shelf(second, 0, FACTS) is not None
    assert found.drop(lambda kind: kind is first) == 1
    assert not found.shelves
    assert found.kind("b", "mid", 2, ()) is not second


def test_constants_are_known_by_storage_and_version() -> None:
    found, _ = library()
    weight = torch.ones(4, 3)
    found.fix([weight])
    before = found.constant(weight[1:], 0)
    assert before is not None
    assert before == found.constant(weight[1:], 0) != found.constant(weight, 0)
    assert found.constant(torch.ones(4, 3), 0) is None
    weight.add_(1)
    assert found.constant(weight[1:], 0) != before


def test_no_room_for_a_single_row_is_said_once() -> None:
    found, warned = library(Storage(10))
    for name in ("a", "b"):
        kind = found.kind(name, name, 0, ())
        assert found.shelf(kind, 0, FACTS) is None
        assert kind.barred
    assert len(warned) == 1
    assert "a row takes 12 bytes" in warned[0]


@pytest.mark.parametrize("written", [False, True])
def test_rows_are_shown_only_if_constants_are_what_they_were(written: bool, tmp_path: Path) -> None:
    found, _ = library(Folder(tmp_path, 1 << 16, persist=True))
    weight = nn.Parameter(torch.ones(4, 3), requires_grad=False)
    found.fix([weight])
    shelf = found.shelf(found.kind((torch.add, found.constant(weight, 0)), "stem", 0, ()), 0, FACTS)
    assert shelf is not None
    look = shelf.look(1, [(1, 1)])
    shelf.insert(look, [0], torch.ones(1, 3), 1)
    assert found.pending
    if written:
        weight.data.add_(1)
    assert found.publish(hurry=True) == int(written)
    assert not found.pending
    sizes: Any = [path.stat().st_size for path in tmp_path.rglob("*.records")]
    assert sum(sizes) == (0 if written else 64)
    found.clear()


def test_what_cannot_be_told_to_others_is_kept_for_this_run_only(tmp_path: Path) -> None:
    found, warned = library(Folder(tmp_path, 1 << 16, persist=True))
    shelf = found.shelf(found.kind((torch.Generator(),), "stem", 0, ()), 0, FACTS)
    assert shelf is not None
    shelf.insert(shelf.look(1, [(1, 1)]), [0], torch.ones(1, 3), 1)
    assert "does not keep what comes out of 'stem' for other runs" in warned[0]
    found.clear()
    assert not list(tmp_path.rglob("*.rows"))
