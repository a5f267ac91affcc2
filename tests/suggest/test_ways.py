"""Ways to fine-tune: what of a real model trains, in which mode, at which rate."""

from __future__ import annotations

import pytest
import yaml
from digits_cnn import DigitNet, Digits
from helpers import Spy, moved, tensors, trainer

from lightning_freeze import discover_stages
from lightning_freeze.suggest.ways import WAYS, callbacks_of, make

STAGES = discover_stages(DigitNet(), max_stages=6)
NAMES = [stage.name for stage in STAGES]


def trained(way: str, norm: str = "eval", epochs: int = 5) -> set[str]:
    """The stages whose weights move."""
    module = DigitNet()
    before = tensors(module)
    trainer(make(callbacks_of(way, STAGES, norm)), epochs).fit(module, Digits(32))
    names = moved(before, tensors(module))
    return {stage.name for stage in STAGES if any(name.startswith(f"{stage.patterns[0]}.") for name in names)}


@pytest.mark.parametrize("way", WAYS)
def test_the_stages_of_a_way_train_and_no_others(way: str) -> None:
    assert trained(way) == {NAMES[place] for place in WAYS[way].trains(len(STAGES))}


def test_the_last_half_and_the_first_third_count_the_body() -> None:
    assert [*WAYS["last half"].trains(7)] == [0, 1, 2, 3]
    assert [*WAYS["first third"].trains(7)] == [0, 5, 6]
    assert [*WAYS["first third"].trains(2)] == [0, 1]


@pytest.mark.parametrize(("norm", "drifts"), [("eval", False), ("train", True)])
def test_the_mode_of_batchnorm_holds_where_layers_are_frozen_too(norm: str, drifts: bool) -> None:
    module = DigitNet()
    before = tensors(module)
    trainer(make(callbacks_of("head", STAGES, norm)), 1).fit(module, Digits(32))
    assert any("running_mean" in name for name in moved(before, tensors(module))) == drifts


def test_lp_ft_trains_the_head_alone_for_a_third_and_then_all_of_it_at_a_tenth() -> None:
    seen = Spy(
        "on_train_epoch_start",
        lambda running, _: sorted({group["lr"] for group in running.optimizers[0].param_groups if group["params"]}),
    )
    trainer([*make(callbacks_of("LP-FT", STAGES, "eval")), seen], 6).fit(DigitNet(lr=0.01), Digits(32))
    assert seen.seen[0] == [pytest.approx(0.01)]
    assert seen.seen[-1] == pytest.approx([0.001, 0.01])


def test_slices_end_at_a_hundredth() -> None:
    rates = callbacks_of("slices", STAGES, "")[-1]["init_args"]["multipliers"]
    assert rates["head"] == 1.0
    assert min(rates.values()) == rates[STAGES[-1].patterns[0]] == 0.01


@pytest.mark.parametrize("way", WAYS)
def test_a_way_is_plain_yaml(way: str) -> None:
    specs = callbacks_of(way, STAGES, "eval")
    assert yaml.safe_load(yaml.safe_dump(specs)) == specs
