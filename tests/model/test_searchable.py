"""Names that patterns see, with kinds and classes found once and only when asked for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from lightning_freeze.model.searchable import Member, Searchable, searchable


class Scaled(nn.Linear):
    """A class of the user's own."""


BODY, HEAD = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), Scaled(2, 1)
MODEL = nn.ModuleDict({"body": BODY, "act": nn.ReLU(), "head": HEAD})
MEMBERS = [
    Member(f"{name}.{leaf}", module, leaf, tensor, f"{name}.{leaf}")
    for name, module in MODEL.named_modules()
    for leaf, tensor in module.named_parameters(recurse=False)
]
FOUND = searchable(MEMBERS, dict(MODEL.named_modules()), "the 6 parameters")


def test_leaves_are_the_names_and_containers_all_that_lies_under_a_module() -> None:
    assert list(FOUND.leaves) == [name for name, _ in MODEL.named_parameters()]
    assert FOUND.containers["body"] == ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    assert FOUND.containers["act"] == []
    assert set(FOUND.containers) == {"body", "body.0", "body.1", "act", "head"}


def test_one_name_may_stand_for_several() -> None:
    module = nn.Linear(1, 1)
    members = [Member("x", module, "bias", module.bias, target) for target in ("a", "b")]
    found = searchable(members, {}, "two")
    assert found.leaves == {"x": ["a", "b"]}
    assert found.kinds["bias"] == found.classes["Linear"] == {"a", "b"}


def test_kinds_and_classes_are_of_the_module_that_holds_the_tensor() -> None:
    assert FOUND.kinds["norm"] == {"body.1.weight", "body.1.bias"}
    assert FOUND.kinds["bias"] >= {"body.0.bias", "head.bias"}
    assert FOUND.classes["LayerNorm"] == {"body.1.weight", "body.1.bias"}
    assert FOUND.classes["Scaled"] == {"head.weight", "head.bias"}


def test_a_class_selects_what_lies_in_classes_derived_from_it() -> None:
    assert FOUND.classes["Linear"] == {"body.0.weight", "body.0.bias", "head.weight", "head.bias"}
    assert "ReLU" not in FOUND.classes


def test_classes_of_the_model_come_before_their_bases() -> None:
    names = FOUND.classes_of_model
    assert names.index("ReLU") < names.index("Module")
    assert {"ModuleDict", "Sequential", "Linear", "LayerNorm", "Scaled"} <= set(names[:6])
    assert "object" not in names
    assert len(names) == len(set(names))


def test_members_are_asked_for_only_when_a_kind_or_a_class_is() -> None:
    asked = []

    def members() -> Iterator[Member]:
        asked.append(True)
        yield Member("w", HEAD, "weight", torch.ones(1), "w")

    lazy = Searchable({"w": ["w"]}, {}, members, [HEAD], "one")
    assert list(lazy.leaves) == ["w"]
    assert lazy.classes_of_model[0] == "Scaled"
    assert not asked
    assert lazy.classes["Scaled"] == lazy.classes["Linear"] == {"w"}
    assert len(asked) == 1
