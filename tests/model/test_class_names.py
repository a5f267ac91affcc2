"""A class is known by its own name and by those of its bases."""

from __future__ import annotations

import torch

from lightning_freeze.model.class_names import class_names, is_named


class Own(torch.optim.AdamW):
    pass


def test_a_thing_has_the_names_of_its_class_and_of_all_bases() -> None:
    assert {"Own", "AdamW", "Optimizer"} <= class_names(Own([torch.zeros(1)]))


def test_one_of_several_names_is_enough() -> None:
    optimizer = Own([torch.zeros(1)])
    assert is_named(optimizer, "SGD", "AdamW")
    assert not is_named(optimizer, "SGD", "own")
    assert not is_named(optimizer)
