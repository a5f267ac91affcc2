"""Ranks that agree go on, and ranks that do not are told so; two real ranks: tests/trainer/test_ddp.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_freeze import FreezeError
from lightning_freeze.trainer import ranks


def test_one_process_agrees_with_itself() -> None:
    ranks.check_agreement({"a", "b"})
    assert ranks.from_rank_0([1]) == [1]
    assert ranks.any_rank([True, False], torch.device("cpu")) == [True, False]


@pytest.mark.usefixtures("gloo")
def test_a_group_of_one_needs_no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_gather_object", None)
    monkeypatch.setattr(dist, "all_reduce", None)
    ranks.check_agreement({"a"})
    assert ranks.any_rank([True], torch.device("cpu")) == [True]


@pytest.mark.usefixtures("gloo")
def test_the_first_difference_is_named_with_both_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    def gather(into: list[Any], value: Any) -> None:
        into[:] = [value, ["a"]] if isinstance(value, list) else [value, "another digest"]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(FreezeError, match=r"'b' \(1 parameters in all\) trains on rank 0 and is frozen on rank 1"):
        ranks.check_agreement({"a", "b"})


def test_the_digest_knows_a_set_and_not_its_order() -> None:
    assert ranks.digest(["b", "a"]) == ranks.digest({"a", "b"}) != ranks.digest({"a"})
