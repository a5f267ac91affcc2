"""When stages start, who trains in them, and what is said at the end."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from helpers import (
    STAGES,
    Net,
    Spy,
    each_epoch,
    fit,
    moved,
    names_in,
    stages_training,
    tensors,
    trainable,
)
from torch import nn

from lightning_freeze import FreezeLayers, GradualUnfreeze, LayerwiseLR


def each_step() -> Spy:
    return Spy("on_train_batch_end", stages_training)


@pytest.mark.parametrize(
    ("schedule", "epochs"),
    [
        ({}, ["h", "hm", "hms", "hms"]),
        ({"every_n_epochs": 2}, ["h", "h", "hm", "hm"]),
        ({"at": [0, 0, 3]}, ["hm", "hm", "hm", "hms"]),
        ({"at": [0, 0.25, 0.5]}, ["h", "hm", "hms", "hms"]),
        ({"curve": "linear"}, ["h", "hm", "hm", "hms"]),  # steps 0, 3 and 6 of 8, two an epoch
        ({"curve": "cosine", "span": (0.5, 1.0)}, ["h", "h", "h", "hms"]),  # steps 0, 6 and 7
        ({"every_n_train_steps": 3}, ["h", "hm", "hm", "hms"]),
    ],
)
def test_stages_start_when_the_schedule_says(schedule: Any, epochs: list[str]) -> None:
    seen = each_epoch()
    gradual = GradualUnfreeze(STAGES, verbose=False, **schedule)
    if epochs[-1] == "hms":
        fit(Net(), [gradual, seen], epochs=4)
    else:
        with pytest.warns(UserWarning, match="never unfrozen: stem"):
            fit(Net(), [gradual, seen], epochs=4)
    assert seen.seen == epochs


@pytest.mark.parametrize(
    "schedule", [{"every_n_train_steps": 3}, {"at": [0, 0.3, 0.6]}, {"curve": "linear", "span": (0.0, 0.9)}]
)
def test_a_step_trigger_acts_in_the_middle_of_an_epoch(schedule: Any) -> None:
    seen = each_step()
    fit(Net(), [GradualUnfreeze(STAGES, verbose=False, **schedule), seen], epochs=2, steps=5)
    assert seen.seen == ["h"] * 3 + ["hm"] * 3 + ["hms"] * 4


def test_a_step_trigger_waits_for_the_accumulation_window() -> None:
    """Ten batches an epoch in windows of four, the last one of two: steps 3 an epoch."""
    seen = each_step()
    gradual = GradualUnfreeze(STAGES, every_n_train_steps=2, verbose=False)
    fit(Net(), [gradual, seen], epochs=2, steps=10, accumulate_grad_batches=4)
    assert seen.seen == ["h"] * 8 + ["hm"] * 6 + ["hms"] * 6


def test_a_step_trigger_fires_through_several_stages_at_once() -> None:
    seen = each_step()
    fit(Net(), [GradualUnfreeze(STAGES, at=[0, 0.5, 0.5], verbose=False), seen], epochs=1, steps=4)
    assert seen.seen == ["h", "h", "hms", "hms"]


def test_fractions_are_of_optimizer_steps_under_max_steps_and_accumulation() -> None:
    seen = each_step()
    gradual = GradualUnfreeze(["head", "mid"], at=[0, 0.5], verbose=False)
    fit(Net(), [gradual, seen], epochs=-1, steps=8, max_steps=4, accumulate_grad_batches=2)
    assert seen.seen == ["h"] * 4 + ["hm"] * 4


def test_a_parameter_in_no_stage_stays_frozen_and_one_in_several_belongs_to_the_first() -> None:
    seen = Spy("on_train_epoch_end", lambda _, module: trainable(module))
    fit(Net(), [GradualUnfreeze(["head", "mid.1.weight", "mid"], verbose=False), seen])
    head = ["head.weight", "head.bias"]
    assert seen.seen == [head, ["mid.1.weight", *head], ["mid.0.weight", "mid.1.weight", "mid.1.bias", *head]]


def test_what_did_not_require_a_gradient_before_never_trains() -> None:
    model = Net()
    model.mid[0].weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    before = tensors(model)
    seen = Spy("on_train_epoch_end", lambda running, module: (trainable(module), names_in(module, running.optimizers)))
    fit(model, [GradualUnfreeze(STAGES, verbose=False), seen])
    assert not {"mid.0.weight", "head.bias"} & moved(before, tensors(model))
    assert seen.seen[-1][0] == [
        name for name, _ in model.named_parameters() if name not in ("mid.0.weight", "head.bias")
    ]
    assert all(sorted(required) == sorted(held) for required, held in seen.seen)
    assert not model.mid[0].weight.requires_grad
    assert not model.head.bias.requires_grad


def test_two_gradual_unfreezings_over_different_parts_of_a_model() -> None:
    """Each keeps frozen what is in none of its stages, so both must list what the other has: the later one decides."""
    seen = each_epoch()
    one = GradualUnfreeze(["head", "mid", "stem"], at=[0, 1, 1], verbose=False)
    other = GradualUnfreeze(["head", "stem", "mid"], at=[0, 2, 3], verbose=False)
    fit(Net(), [one, other, seen], epochs=4)
    assert seen.seen == ["h", "h", "hs", "hms"]


def test_discovered_stages_train_the_head_first() -> None:
    seen = each_epoch()
    fit(Net(), [GradualUnfreeze(verbose=False), LayerwiseLR(0.5), seen], epochs=4)
    assert seen.seen[0] == "h"
    assert seen.seen[-1] == "hms"


@pytest.mark.parametrize("options", [{"max_steps": 3}, {"epochs": 2}])
@pytest.mark.parametrize(
    "unfreeze",
    [{}, {"at": [0, 1, 2]}, {"every_n_train_steps": 2}, {"monitor": "val", "patience": 0}, {"at": [0, 0.5, 1.0]}],
)
def test_a_run_that_ends_before_its_schedule_says_so_once_at_its_start(
    options: Any, unfreeze: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Net()
    module.training_step = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    text = "ends before its schedule does; never unfrozen: stem"
    with pytest.warns(UserWarning, match=text) as caught, contextlib.suppress(SystemExit, KeyboardInterrupt):
        fit(module, [GradualUnfreeze(STAGES, **unfreeze), LayerwiseLR(0.5)], **options)
    assert len([one for one in caught if "never unfrozen" in str(one.message)]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("head ", "mid ", "stem "))]
    marks = [" ! " in row for row in rows]
    assert marks == [False, False, "monitor" not in unfreeze]  # a metric decides when
    with pytest.warns(UserWarning, match="never unfrozen: stem") as caught:
        fit(Net(), [GradualUnfreeze(STAGES, verbose=False), FreezeLayers("head.bias")], **options)
    assert len([one for one in caught if "never unfrozen" in str(one.message)]) == 1


def test_a_run_that_is_stopped_early_names_what_never_trained_at_its_end() -> None:
    stop = Spy("on_train_epoch_end", lambda running, _: setattr(running, "should_stop", running.current_epoch == 1))
    with pytest.warns(UserWarning, match="never unfrozen: stem") as caught:
        fit(Net(), [GradualUnfreeze(STAGES, verbose=False), stop])
    said = [str(warning.message) for warning in caught if "never unfrozen" in str(warning.message)]
    assert len(said) == 1
    assert "GradualUnfreeze: the run ended before its schedule did; never unfrozen: stem." in said[0]
    assert "in epoch 1 after 4 optimizer steps" in said[0]


def test_a_trial_run_is_not_warned_of_its_length() -> None:
    fit(Net(), [GradualUnfreeze(STAGES, verbose=False)], fast_dev_run=True)  # a warning would be an error


def test_ties_across_stages_train_with_the_first_of_them() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mid[0].weight = self.stem[0].weight

    model, seen = Tied(), Spy("on_train_epoch_end", lambda running, module: names_in(module, running.optimizers))
    fit(model, [GradualUnfreeze(STAGES, verbose=False), seen])
    assert "stem.0.weight" in seen.seen[1]
    assert "stem.1.weight" not in seen.seen[1]
    assert isinstance(model.mid[0], nn.Linear)
