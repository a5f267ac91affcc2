"""A lazy tensor tells its facts without its values, and becomes a plain one in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.graph import Facts
from lightning_freeze.cache.lazy import Lazy, become, first_lazy, lazies, make_lazy, plain


class Asked:
    """Gives ones, and counts."""

    def __init__(self) -> None:
        self.values = 0

    def meet(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*plain(args), **plain(kwargs))

    def value(self, lazy: Lazy) -> Tensor:
        self.values += 1
        return torch.ones(lazy.shape)

    def make_real(self, lazy: Lazy) -> None:
        become(lazy, self.value(lazy))


def lazy(asked: Asked) -> Lazy:
    facts = Facts((2, 3), (3, 1), torch.float32, torch.device("cpu"), 0)
    return make_lazy(facts, object(), None, asked)


def test_facts_need_no_values() -> None:
    asked = Asked()
    one = lazy(asked)
    assert (one.shape, one.dtype, one.dim(), len(one), one.stride()) == ((2, 3), torch.float32, 2, 2, (3, 1))
    assert not one.requires_grad
    assert one.is_contiguous()
    assert asked.values == 0


def test_a_function_gets_values() -> None:
    asked = Asked()
    assert torch.equal(lazy(asked) + 1, torch.full((2, 3), 2.0))
    assert asked.values == 1


def test_the_very_object_becomes_plain() -> None:
    asked = Asked()
    one = lazy(asked)
    kept = {"list": [one]}
    asked.make_real(one)
    assert type(kept["list"][0]) is Tensor
    assert kept["list"][0].sum() == 6


def test_lazy_tensors_are_found_in_trees() -> None:
    one = lazy(Asked())
    assert lazies(({"a": [one, 1]}, torch.ones(1))) == [one]
    assert first_lazy([1, (one,)]) is one
    assert first_lazy([1]) is None
