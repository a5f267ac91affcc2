"""A part has a token for each state that it is in, and another one when anything changes."""

from __future__ import annotations

import torch
from torch import nn

from lightning_freeze.cache.parts import Part, entries


def part() -> Part:
    return Part(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), "stem")


def test_a_token_stays_while_nothing_changes() -> None:
    one = part()
    token = one.check()
    assert token
    assert one.check() == token
    assert one.still(token)


def test_a_change_gives_no_token_first_and_another_one_when_it_stays() -> None:
    one = part()
    token = one.check()
    with torch.no_grad():
        one.module[0].weight.add_(1)  # type: ignore[operator, index, union-attr]
    assert one.check() == 0
    assert one.check() not in (0, token)
    assert not one.still(token)


def test_what_changes_each_time_is_left_alone() -> None:
    one = part()
    one.check()
    for turn in range(50):
        one.module.count = turn  # type: ignore[assignment]
        assert one.check() == 0
    assert one.open


def test_a_write_through_data_is_found_when_an_epoch_starts() -> None:
    one = part()
    token = one.check()
    one.module[0].weight.data.add_(1)  # type: ignore[operator, index, union-attr]
    assert not one.still(token)
    one.epoch_start()
    assert one.check() not in (0, token)


def test_a_flaw_is_final_or_has_a_second_try() -> None:
    one = part()
    one.judge("reads a value", final=False)
    assert one.whole is None
    one.judge("reads a value", final=False)
    assert one.whole is False
    other = part()
    other.judge("", final=True)
    assert other.whole


def test_entries_are_the_outermost_parts_but_for_open_ones() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    parts = {module: Part(module, "") for module in model.modules() if module is not model}
    assert entries(model.modules(), parts) == [model[0], model[1]]
    parts[model[0]].judge("prints", final=True)
    assert len(entries(model.modules(), parts)) == 4
