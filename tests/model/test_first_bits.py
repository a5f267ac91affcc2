"""A slim checkpoint leaves out exactly what has its first bits, and gets exactly that back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze import ResumeError, merge_checkpoint
from lightning_freeze.model.first_bits import KEY, fill, first_bits, slim


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Linear(32, 2))


def trained() -> tuple[Any, Any]:
    """The first bits of a module, and a checkpoint after its last layer moved; `extra` holds a copy of a start."""
    model = net()
    first = first_bits(model.state_dict())
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[2].weight += 1
        model[2].bias += 1
    checkpoint = {"epoch": 3, "state_dict": model.state_dict(), "extra": [{"start": start, "small": torch.ones(2)}]}
    return first, checkpoint


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def test_bits_and_dtype_of_every_tensor_are_known() -> None:
    state = net().state_dict()
    first = first_bits({**state, "note": "no tensor", "meta": torch.empty(3, device="meta")})
    assert set(first) == set(state)
    assert first["0.weight"][1] == "float32"
    assert first["1.num_batches_tracked"][1] == "int64"
    assert first == first_bits(net().state_dict())
    assert first["0.weight"][0] != first_bits(net(1).state_dict())["0.weight"][0]


def test_only_what_moved_is_kept_and_the_checkpoint_is_not_changed() -> None:
    first, checkpoint = trained()
    before = copy.deepcopy(checkpoint)
    slimmed = slim(checkpoint, first)
    assert set(slimmed["state_dict"]) == {"2.weight", "2.bias"}
    assert same(checkpoint["state_dict"], before["state_dict"])
    assert KEY not in checkpoint
    assert slimmed["epoch"] == 3


def test_copies_of_first_bits_elsewhere_are_left_out_from_64_elements_on() -> None:
    first, checkpoint = trained()
    checkpoint["extra"][0]["bias"] = net()[0].bias.detach().clone()  # 32 elements
    slimmed = slim(checkpoint, first)
    assert slimmed["extra"][0]["start"] is None
    assert slimmed["extra"][0]["bias"] is not None
    assert torch.equal(checkpoint["extra"][0]["start"], net()[0].weight)


def test_the_last_bit_counts() -> None:
    first, checkpoint = trained()
    weight = checkpoint["state_dict"]["0.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert "0.weight" in slim(checkpoint, first)["state_dict"]


def test_where_everything_moved_nothing_is_added() -> None:
    first, checkpoint = trained()
    del checkpoint["extra"]
    for value in checkpoint["state_dict"].values():
        value += 1
    assert slim(checkpoint, first) == checkpoint


def test_filling_gives_the_full_checkpoint_back_in_its_order() -> None:
    first, checkpoint = trained()
    slimmed = slim(checkpoint, first)
    fill(slimmed, net().state_dict(), "Net")
    assert same(slimmed["state_dict"], checkpoint["state_dict"])
    assert torch.equal(slimmed["extra"][0]["start"], checkpoint["extra"][0]["start"])
    assert torch.equal(slimmed["extra"][0]["small"], torch.ones(2))
    assert KEY not in slimmed


def test_a_full_checkpoint_stays_as_it_is() -> None:
    _, checkpoint = trained()
    before = dict(checkpoint)
    fill(checkpoint, net(1).state_dict(), "Net")
    assert checkpoint == before


def test_a_module_that_is_wider_has_its_dtype_checked_and_cast() -> None:
    first, checkpoint = trained()
    state = {name: value.double() if value.is_floating_point() else value for name, value in net().state_dict().items()}
    slimmed = slim(checkpoint, first)
    fill(slimmed, state, "Net")
    assert slimmed["state_dict"]["0.weight"].dtype == torch.float32
    assert same(slimmed["state_dict"], checkpoint["state_dict"])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (net(1), r"'0\.weight' of Net has other values now \(2 of \d tensors differ\)"),
        (nn.Linear(4, 32), r"leaves out '0\.weight', and Net has no tensor of this name"),
    ],
)
def test_another_base_is_refused(module: nn.Module, message: str) -> None:
    first, checkpoint = trained()
    with pytest.raises(ResumeError, match=message):
        fill(slim(checkpoint, first), module.state_dict(), "Net")


@pytest.mark.parametrize("by_path", [True, False])
def test_merging_shares_no_tensor_with_the_module(by_path: bool, tmp_path: Path) -> None:
    first, checkpoint = trained()
    slimmed, model = slim(checkpoint, first), net()
    torch.save(slimmed, tmp_path / "slim.ckpt")
    merged = merge_checkpoint(tmp_path / "slim.ckpt" if by_path else slimmed, model)
    assert same(merged["state_dict"], checkpoint["state_dict"])
    merged["state_dict"]["0.weight"] += 1
    assert torch.equal(model[0].weight, net()[0].weight)
    assert KEY in slimmed
