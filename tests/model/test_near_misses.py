"""What an error proposes when a pattern selects nothing."""

from __future__ import annotations

import re

import pytest
import torchvision
from torch import nn

from lightning_freeze import PatternError, select
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.model.near_misses import disjoint, nothing_matched

RESNET = torchvision.models.resnet18()
SEARCHED = ModelIndex(RESNET).searchable


def message(pattern: str, term: str | None = None) -> str:
    return nothing_matched(pattern, pattern if term is None else term, SEARCHED, "owner")


def test_owner_pattern_and_count_come_first() -> None:
    assert message("layer5").splitlines()[0] == "owner: pattern 'layer5' matches none of the 62 parameters of ResNet."
    assert "pattern 'fc & layer5': 'layer5' matches none" in message("fc & layer5", "layer5")
    assert "pattern '!layer5' matches none" in message("!layer5", "layer5")


def test_names_that_are_close_follow() -> None:
    assert re.search(r"\n  Closest: .*layer[1-4]", message("layer5"))


def test_a_class_that_is_not_there_is_answered_with_the_closest() -> None:
    assert "\n  Closest classes: BatchNorm2d" in message("type:batchnorm2")
    assert "Closest classes: Conv2d" in message("type:torch.nn.Conv2D")
    assert "Modules of class 'BasicBlock' have none directly in them" in message("type:BasicBlock")
    named = message("type:zzz").partition("Closest classes: ")[2].split(", ")
    assert {"Conv2d", "BatchNorm2d", "Linear"} <= set(named)  # nothing is close: those of the model
    assert "ReLU" not in named  # which has no parameters


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        (r"layer[34]\..*", r"layer[34]\..*"),
        (r"layer(3|4)", r"layer(3|4).*"),
        (r"downsample\.1\.weight$", r".*downsample\.1\.weight$"),
        (r"re:layer4", r"layer4.*"),
    ],
)
def test_what_looks_like_an_expression_is_answered_with_one_that_matches(pattern: str, meant: str) -> None:
    count = len(select(RESNET, f"re:{meant}"))
    assert message(pattern).endswith(f"\n  Did you mean 're:{meant}'? It matches {count}")


def test_an_expression_that_matches_nothing_in_any_form_is_answered_with_names() -> None:
    assert "Closest: " in message("re:layer[5]")
    assert "Closest: " in message("layer(5")  # not even an expression


def test_a_child_that_is_not_there_is_answered_with_the_ones_that_are() -> None:
    assert message("layer1.zzzzzzzzzzzzzz").endswith("\n  Closest: layer1.0, layer1.1")


def test_a_name_without_what_comes_before_it_is_answered_with_the_whole() -> None:
    searched = ModelIndex(nn.ModuleDict({"model": RESNET})).searchable
    assert nothing_matched("fc", "fc", searched, "owner").endswith("\n  Closest: model.fc")


def test_a_module_without_parameters_is_called_so() -> None:
    assert "\n  'relu' is a module without any." in message("relu")


def test_a_kind_needs_no_proposal_and_a_model_without_parameters_has_none() -> None:
    assert "\n" not in message("kind:embedding")
    assert "\n" not in nothing_matched("*", "*", ModelIndex(nn.ReLU()).searchable, "owner")


def test_terms_that_have_nothing_in_common_are_counted() -> None:
    found = disjoint(["fc", "kind:norm"], 2, 40, "fc & kind:norm", "owner")
    assert "selects nothing: 'fc' selects 2, and none of them are among the 40 of 'kind:norm'" in found
    found = disjoint(["fc", "kind:bias", "!type:Linear"], 1, 2, "...", "owner")
    assert "'fc & kind:bias' selects 1, and all of them are among the 2 of 'type:Linear'" in found


def test_select_says_it_with_the_names_of_the_pattern() -> None:
    with pytest.raises(PatternError, match=r"'layer4 & kind:embedding': 'kind:embedding' matches none of the 62"):
        select(RESNET, "layer4 & kind:embedding")
    with pytest.raises(PatternError, match=r"'fc' selects 2, and none of them are among the 40 of 'kind:norm'"):
        select(RESNET, "fc & kind:norm")
    with pytest.raises(PatternError, match=r"type:batchnorm2' matches none.*\n  Closest classes: BatchNorm2d"):
        select(RESNET, "type:batchnorm2")
