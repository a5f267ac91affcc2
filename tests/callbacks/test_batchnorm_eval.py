"""Which normalisation layers are held, when, and what trains of them."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import STAGES, fit, moved, tensors
from torch import Tensor, nn
from watched import MID, STEM, Chain, TrainsItself, Watched

from lightning_freeze import BatchNormEval, GradualUnfreeze, PatternError, PlanError


class Norms(Watched):
    """One layer of each kind that keeps statistics, and some that look like it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.LayerNorm(4))
        self.mid = nn.Sequential(
            nn.Unflatten(1, (2, 2)),
            nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
            nn.InstanceNorm1d(2),
            nn.BatchNorm1d(2, track_running_stats=False),
            nn.Flatten(),
        )
        self.watch()


ALL = {"stem.1", "stem.2", "mid.1", "mid.3"}


@pytest.mark.parametrize(
    ("patterns", "held"),
    [
        ("*", ALL),
        ("stem", {"stem.1", "stem.2"}),
        ("stem.2", {"stem.2"}),
        ("stem.1.weight", {"stem.1"}),
        ("st*.1", {"stem.1"}),
        ("*.1", {"stem.1", "mid.1"}),
        (r"re:mid\..*", {"mid.1", "mid.3"}),
        (["*", "!mid"], {"stem.1", "stem.2"}),
        (["*", "!stem.1.bias", "!mid.3"], {"stem.2", "mid.1"}),
    ],
)
def test_normalisation_layers_are_held_by_name(patterns: Any, held: set[str]) -> None:
    module = Norms()
    before = tensors(module)
    fit(module, [BatchNormEval(patterns)])
    assert [names & ALL for names in module.modes()] == [held] * 3
    assert all(names <= ALL for names in module.modes())
    changed = moved(before, tensors(module))
    assert {name.rpartition(".")[0] for name in changed if "running" in name} == ALL - held - {"mid.3"}


def test_a_layer_frozen_affine_keeps_weight_bias_and_statistics() -> None:
    module = Norms()
    before = tensors(module)
    fit(module, [BatchNormEval(affine="freeze")])
    assert not any(name.startswith(("stem.1", "stem.2", "mid.1", "mid.3")) for name in moved(before, tensors(module)))
    assert module.modes() == [ALL] * 3


def test_layers_are_held_while_frozen_and_no_longer() -> None:
    module = Norms()
    gradual = GradualUnfreeze(["head", "mid", "stem"], eval_frozen=False, verbose=False)
    fit(module, [gradual, BatchNormEval(when="frozen")])
    assert module.modes() == [ALL, {"stem.1", "stem.2"}, set()]


def test_held_layers_stay_held_and_train_when_their_stage_is_unfrozen() -> None:
    module = TrainsItself()
    before = tensors(module)
    fit(module, [GradualUnfreeze(STAGES, verbose=False), BatchNormEval("stem")])
    assert module.modes() == [STEM | MID, STEM, {"stem.1"}]
    assert {name for name in moved(before, tensors(module)) if "stem" in name} == {
        "stem.0.weight",
        "stem.1.weight",
        "stem.1.bias",
    }


def test_sync_batchnorm_and_subclasses_are_normalisation_layers() -> None:
    class Mine(nn.BatchNorm1d):
        pass

    class Both(Watched):
        def __init__(self) -> None:
            super().__init__()
            self.mid[1] = Mine(4)
            self.stem[1] = nn.SyncBatchNorm(4)
            self.watch()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.mid(self.stem[0](inputs) if self.stem[1].training else self.stem(inputs)))

    module = Both()
    fit(module, [BatchNormEval()], epochs=1)
    assert module.modes() == [{"stem.1", "mid.1"}]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            "stem.0",
            r"BatchNormEval: pattern 'stem\.0' matches none of the 4 normalisation layers of Norms\.\n.*\n.*stem\.1",
        ),
        ("stem.3", r"'stem\.3' matches none"),
        (["*", "!head"], r"'!head' matches none"),
    ],
)
def test_a_pattern_without_a_normalisation_layer_is_refused(patterns: Any, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        fit(Norms(), [BatchNormEval(patterns)])


def test_a_model_without_normalisation_layers_is_refused() -> None:
    with pytest.raises(PatternError, match="Chain has no normalisation layer with running statistics"):
        fit(Chain(nn.Linear(4, 4)), [BatchNormEval()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when": "never"}, "when must be one of 'always', 'frozen', got 'never'"),
        ({"affine": "off"}, "affine must be one of 'train', 'freeze', got 'off'"),
        ({"patterns": []}, "patterns is empty"),
    ],
)
def test_arguments_are_checked_at_construction(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        BatchNormEval(**options)
