"""Trees are taken apart into tensors and a record, and put together again."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_freeze.cache.trees import Same, Unknown, flatten, rebuild

Pair = namedtuple("Pair", ["one", "other"])


@dataclass
class Output:
    hidden: Tensor
    name: str = "x"


ONE = torch.ones(2)
TREES: list[Any] = [
    (ONE, 1, None, "text", 2.5, True, ...),
    ((ONE, (ONE * 2,)), slice(1, None), torch.float32),
    torch.Size([1, 2]),
    Pair(ONE, 3),
    torch.max(torch.ones(2, 2), 0),
]
MUTABLE: list[Any] = [[ONE, {"a": ONE}], OrderedDict(a=ONE), Output(ONE)]


def parts(tree: Any) -> str:
    return repr(tree)


@pytest.mark.parametrize("tree", [*TREES, *MUTABLE], ids=repr)
def test_a_tree_is_put_together_again(tree: Any) -> None:
    found: list[Tensor] = []
    spec = flatten(tree, found, mutable=True)
    again = rebuild(spec, iter(found))
    assert type(again) is type(tree)
    assert repr(again) == repr(tree)
    assert hash(spec) == hash(flatten(tree, [], mutable=True))


@pytest.mark.parametrize("tree", MUTABLE, ids=repr)
def test_what_may_be_written_into_is_not_looked_into_unless_asked(tree: Any) -> None:
    with pytest.raises(Unknown):
        flatten(tree, [])


@pytest.mark.parametrize("tree", [iter([1]), lambda: 1, object(), {1, 2}], ids=["iterator", "lambda", "object", "set"])
def test_what_nobody_can_look_into_is_refused(tree: Any) -> None:
    if callable(tree):
        assert flatten(tree, [], mutable=True) == ("same", Same(tree))
        return
    with pytest.raises(Unknown):
        flatten(tree, [], mutable=True)


def test_numbers_that_differ_make_other_records_but_for_that_of_the_rows() -> None:
    assert flatten((1, 8), []) != flatten((1, 9), [])
    assert flatten((1.0,), []) != flatten((1,), [])
    assert flatten((0.0,), []) != flatten((-0.0,), [])
    spec = flatten((3, 8), [], rows=8)
    assert spec == flatten((3, 9), [], rows=9)
    assert rebuild(spec, iter(()), 5) == (3, 5)
