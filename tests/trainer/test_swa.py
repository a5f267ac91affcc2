"""Beside Lightning's StochasticWeightAveraging: rates keep the factors of layers, and its last epoch trains nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import STAGES, TRUSTED, Batches, Net, Spy, fit, moved, stages_training, tensors, trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor

from lightning_freeze import BatchNormEval, FreezeAudit, FreezeLayers, GradualUnfreeze, LayerwiseLR
from lightning_freeze.errors import OptimizerError

ANNEALED = 2  # epochs in which SWA goes from the rates it finds to its own


def average(rates: float | list[float], start: int) -> StochasticWeightAveraging:
    return StochasticWeightAveraging(rates, swa_epoch_start=start, annealing_epochs=ANNEALED)


def rates_of(trainer: Any, _: Any) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}


def closed_form(before: float, rate: float, since: int) -> float:
    """What torch's SWALR has after so many epochs, annealed along a cosine."""
    weight = (1 - math.cos(math.pi * min(1.0, since / ANNEALED))) / 2
    return before + (rate - before) * weight


def two_groups(net: Net) -> Any:
    early = [*net.stem.parameters(), *net.mid.parameters()]
    groups = [{"params": early, "lr": 0.1}, {"params": net.head.parameters(), "lr": 0.2}]
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.parametrize(
    ("given", "stages", "start", "first"),
    [(0.05, STAGES, 2, False), ([0.05], STAGES, 2, True), (0.05, "auto", 1, True), ([0.05], "auto", 2, False)],
)
def test_the_rates_of_swa_are_multiplied_by_the_factor_of_each_layer(
    given: Any, stages: Any, start: int, first: bool
) -> None:
    seen = Spy("on_train_batch_start", rates_of)
    ours = [LayerwiseLR(0.5, stages=stages), GradualUnfreeze(stages, verbose=False)]
    averaged = average(given, start)
    fit(Net(), [averaged, *ours, seen] if first else [*ours, averaged, seen], epochs=5, steps=1)
    for epoch, rates in enumerate(seen.seen):
        expected = closed_form(0.1, 0.05, max(epoch - (start - 1), 0))
        assert list(rates.values()) == pytest.approx([0.25 * expected, 0.5 * expected, expected]), epoch
    assert averaged._swa_lrs in (0.05, [0.05])


def test_a_list_has_one_rate_for_each_group_of_the_user() -> None:
    seen = Spy("on_train_batch_start", rates_of)
    fit(Net(two_groups), [average([0.04, 0.02], 2), LayerwiseLR(0.5, stages=STAGES), seen], epochs=5, steps=1)
    assert seen.seen[0] == pytest.approx({"stem": 0.025, "mid": 0.05, "head": 0.2})
    assert seen.seen[-1] == pytest.approx({"stem": 0.01, "mid": 0.02, "head": 0.02})


def test_a_list_of_another_length_is_refused_at_the_start() -> None:
    with pytest.raises(OptimizerError, match="has 3 swa_lrs"):
        fit(Net(), [average([0.1, 0.1, 0.1], 2), LayerwiseLR(0.5, stages=STAGES)])


# ---- the epoch that SWA adds


def statistics(net: Any) -> dict[str, Tensor]:
    return {name: value for name, value in tensors(net).items() if "running" in name}


@pytest.mark.filterwarnings("ignore:.*the run ends before")
@pytest.mark.parametrize("first", [True, False])
def test_in_the_epoch_that_swa_adds_nothing_changes_sides_and_only_free_statistics_are_filled(first: bool) -> None:
    sides, filled = Spy("on_train_epoch_end", stages_training), Spy("on_train_epoch_end", lambda _, net: tensors(net))
    ours = [
        GradualUnfreeze(STAGES, every_n_epochs=2, verbose=False),  # the stem is due in epoch 4
        FreezeLayers("mid.0", start=4, verbose=False),
        FreezeAudit(verbose=False),
        sides,
        filled,
    ]
    averaged = average(0.05, 2)
    fit(net := Net(), [averaged, *ours] if first else [*ours, averaged], epochs=4)
    assert sides.seen == ["h", "h", "hm", "hm", "hm"]
    assert moved(statistics(Net()), statistics(net)) == {"mid.1.running_mean", "mid.1.running_var"}
    assert [norm.momentum for norm in (net.stem[1], net.mid[1])] == [0.1, 0.1]
    features = net.stem.eval()(torch.cat([inputs for inputs, _ in Batches().all])) @ net.mid[0].weight.T
    torch.testing.assert_close(net.mid[1].running_mean, features.mean(0))


def test_fractions_of_a_run_do_not_count_the_epoch_that_swa_adds() -> None:
    stages, sides = GradualUnfreeze(STAGES, span=(0.0, 1.0), verbose=False), Spy("on_train_epoch_end", stages_training)
    fit(Net(), [average(0.05, 2), stages, sides], epochs=4, steps=2)
    plain = Spy("on_train_epoch_end", stages_training)
    fit(Net(), [GradualUnfreeze(STAGES, span=(0.0, 1.0), verbose=False), plain], epochs=4, steps=2)
    assert sides.seen[:4] == plain.seen


# ---- resumed within SWA's phase


class Seeded(Spy):
    """The same Dropout in each step, whatever was drawn before."""

    def __init__(self) -> None:
        super().__init__("on_train_batch_start", lambda trainer, _: torch.manual_seed(trainer.global_step))


def run(callbacks: Sequence[Any], folder: Path | None = None, epochs: int = 6, resume: Path | None = None) -> Net:
    def save(trainer: Any, _: Any) -> None:
        trainer.save_checkpoint(folder / f"{trainer.current_epoch}.ckpt")

    saving = [Spy("on_train_epoch_end", save)] if folder else []
    running = trainer([*callbacks, Seeded(), *saving], epochs)
    net = Net(lambda net: torch.optim.AdamW(net.parameters(), lr=0.05))
    running.fit(net, Batches(2), Batches(1), ckpt_path=resume, **TRUSTED)
    return net


def callbacks() -> list[Any]:
    return [
        average([0.02], 3),
        LayerwiseLR(0.5, stages=STAGES),
        GradualUnfreeze(STAGES, every_n_epochs=2, verbose=False),
        BatchNormEval("stem"),
        FreezeAudit(verbose=False),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Net, list[Any]]:
    folder, rates = tmp_path_factory.mktemp("swa"), Spy("on_train_batch_start", rates_of)
    return folder, run([*callbacks(), rates], folder), rates.seen


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_a_run_resumed_before_or_in_the_phase_of_swa_ends_with_the_same_bits(
    epoch: int, whole: tuple[Path, Net, list[Any]]
) -> None:
    folder, net, rates = whole
    seen = Spy("on_train_batch_start", rates_of)
    resumed = run([*callbacks(), seen], resume=folder / f"{epoch}.ckpt")
    assert seen.seen == rates[2 * (epoch + 1) :]
    assert not moved(tensors(net), tensors(resumed))
