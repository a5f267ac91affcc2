"""What is frozen, in eval mode and deterministic may be kept; the rest is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_freeze.cache.eligible import Eligible, in_train_mode
from lightning_freeze.model.index import ModelIndex


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).requires_grad_(False), nn.Linear(2, 2)
    )


def test_a_frozen_part_in_eval_mode_is_clean_with_all_in_it_that_has_parameters() -> None:
    model = net().eval()
    found = Eligible(ModelIndex(model))
    assert [found.names[id(one)] for one in found.modules] == ["0", "0.0", "0.1"]
    assert not found.refusals


def test_layers_in_train_mode_are_refused_with_their_names() -> None:
    found = Eligible(ModelIndex(net().train()))
    assert [found.names[id(one)] for one in found.modules] == ["0.0"]
    assert [text.split(" ")[0] for text in found.refusals] == ["'0.1'", "'0.2'"]


@pytest.mark.parametrize(
    ("module", "clean"),
    [
        (nn.Dropout(0.0), True),
        (nn.Dropout(0.1), False),
        (nn.RReLU(), False),
        (nn.LSTM(2, 2, 2, dropout=0.1), False),
        (nn.LSTM(2, 2), True),
        (nn.InstanceNorm1d(2), True),
        (nn.BatchNorm1d(2, track_running_stats=False).eval(), False),
        (nn.BatchNorm1d(2).eval(), True),
    ],
)
def test_a_layer_that_draws_or_looks_at_the_batch_is_told(module: nn.Module, clean: bool) -> None:
    assert (in_train_mode(module) == "") == clean


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_module_is_left_alone() -> None:
    scripted = torch.jit.trace(nn.Linear(2, 2).requires_grad_(False), torch.ones(1, 2))
    assert not Eligible(ModelIndex(nn.Sequential(scripted))).modules
