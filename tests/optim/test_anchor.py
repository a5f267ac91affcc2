"""Start values are taken once, and weights go back to them by a part of the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze.optim.anchor import Anchor, pull, skipped


def parameters(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.full((3,), value)) for value in values]


@pytest.fixture
def anchor() -> Anchor:
    anchor = Anchor(on_host=True)
    anchor.take(["a", "b"], parameters(1.0, 2.0))
    return anchor


def test_a_start_is_copied_and_taken_once(anchor: Anchor) -> None:
    (moved,) = parameters(9.0)
    anchor.take(["a"], [moved])
    assert torch.equal(anchor.values["a"], torch.ones(3))
    anchor.take(["c"], [moved])
    with torch.no_grad():
        moved.zero_()
    assert torch.equal(anchor.values["c"], torch.full((3,), 9.0))


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("weight", [0.25, torch.tensor(0.25)])
def test_weights_go_that_part_of_the_way(on_host: bool, weight: Any) -> None:
    anchor, moved = Anchor(on_host), parameters(5.0, 6.0)
    pull(moved, anchor.take(["a", "b"], parameters(1.0, 2.0)), weight)
    assert torch.equal(moved[0], torch.full((3,), 4.0))
    assert torch.equal(moved[1], torch.full((3,), 5.0))


@pytest.mark.parametrize("weight", [1.0, 7.0, torch.tensor(7.0)])
def test_it_never_goes_past_the_start(anchor: Anchor, weight: Any) -> None:
    moved = parameters(5.0, -6.0)
    pull(moved, anchor.take(["a", "b"], moved), weight)
    assert torch.equal(moved[0], torch.ones(3))
    assert torch.equal(moved[1], torch.full((3,), 2.0))


def test_the_starts_stay_and_no_gradient_is_recorded(anchor: Anchor) -> None:
    moved = parameters(5.0, 6.0)
    pull(moved, anchor.take(["a", "b"], moved), 0.5)
    assert torch.equal(anchor.values["a"], torch.ones(3))
    assert all(parameter.is_leaf and parameter.grad is None for parameter in moved)


def test_those_of_a_checkpoint_take_the_place_of_all(anchor: Anchor) -> None:
    (other,) = parameters(0.0)
    saved = torch.full((3,), 4.0)
    anchor.load({"b": saved}, {"b": other})
    saved.zero_()
    assert list(anchor.values) == ["b"]
    assert torch.equal(anchor.values["b"], torch.full((3,), 4.0))


def test_an_update_that_was_skipped_is_known_by_the_scaler_s_mark() -> None:
    optimizer = torch.optim.SGD(parameters(1.0), 0.1)
    assert skipped(optimizer) is None
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    assert skipped(optimizer) == 1
