"""Stages that nobody named are found once, hold what can train, and come back from a record."""

from __future__ import annotations

import torch
from torch import nn

from lightning_freeze.model.index import ModelIndex
from lightning_freeze.stages.discovery import Discovery, can_train


def patterns(found: list[object]) -> list[list[str]]:
    return [stage.patterns for stage in found]


def test_only_what_can_train_is_in_a_stage_and_a_thaw_takes_all() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad = False
    thawing = Discovery()
    thawing.thaw = True

    assert patterns(Discovery().stages(ModelIndex(model), None)) == [["1"], ["0.bias"]]
    assert patterns(thawing.stages(ModelIndex(model), None)) == [["1"], ["0"]]


def test_a_model_that_is_frozen_as_a_whole_keeps_its_stages() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)

    assert can_train(ModelIndex(model)) == ["weight", "bias"]


def test_the_order_of_registration_is_remarked_and_that_of_an_example_input_is_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    without, having = Discovery(), Discovery()
    without.stages(ModelIndex(model), None)
    model.example_input_array = torch.rand(1, 2)
    having.stages(ModelIndex(model), 1)

    assert "order of registration" in without.remarks[0]
    assert not having.remarks


def test_a_record_brings_the_stages_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = Discovery(), Discovery()
    found = first.stages(ModelIndex(model), 2)
    second.load(first.record())

    assert second.stages(ModelIndex(model), 2) == found
    assert not second.remarks
