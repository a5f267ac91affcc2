"""Calls become operations of one kind when they differ in rows only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.graph import Op
from lightning_freeze.cache.library import Library
from lightning_freeze.cache.operations import Operations
from lightning_freeze.cache.parts import Part
from lightning_freeze.cache.row_store import Storage
from lightning_freeze.cache.trees import flatten

LIBRARY = Library(Storage(1 << 16), True, print, {})
PART = Part(nn.Linear(3, 3).requires_grad_(False), "stem")


def operation(*args: Any, batch: int = 4, part: Part = PART) -> Op | None:
    tensors: list[Tensor] = []
    spec = flatten((args, ()), tensors)
    return Operations(None, LIBRARY, batch).of_module(part, part.module, spec, tensors, part.check())


def kind(*args: Any, **options: Any) -> Any:
    made = operation(*args, **options)
    assert made is not None
    return made.kind


def test_other_rows_are_of_one_kind_and_other_arguments_are_not() -> None:
    first = kind(torch.randn(4, 3))
    assert kind(torch.randn(4, 3)) is first
    assert kind(torch.randn(7, 3), batch=7) is first
    assert kind(torch.randn(4, 3), 2) is not first
    assert kind(torch.randn(4, 3, dtype=torch.float64)) is not first
    with torch.autocast("cpu", torch.bfloat16):
        assert kind(torch.randn(4, 3)) is not first


def test_one_tensor_twice_is_not_two_equal_ones() -> None:
    one = torch.randn(4, 3)
    assert kind(one, one) is not kind(one, one.clone())


def test_written_weights_make_another_kind() -> None:
    part = Part(nn.Linear(3, 3).requires_grad_(False), "stem")
    first = kind(torch.randn(4, 3), part=part)
    with torch.no_grad():
        part.module.weight.add_(1)  # type: ignore[operator, union-attr]
    part.check()
    assert kind(torch.randn(4, 3), part=part) is not first


def test_what_trains_and_rows_that_do_not_fit_make_none() -> None:
    assert operation(torch.randn(4, 3, requires_grad=True)) is None
    assert operation(torch.randn(4, 3), torch.randn(8, 3)) is None
    assert operation(3) is None
