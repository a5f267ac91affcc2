"""What a stage says of its rate and its limits wins for this stage; multipliers take names of stages."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from helpers import STAGES, Net, each_epoch, fit

from lightning_freeze import (
    GradualUnfreeze,
    LayerwiseLR,
    PatternError,
    PlanError,
    ProgressiveFreeze,
    RotatingUnfreeze,
    Stage,
)
from lightning_freeze.cli import main
from lightning_freeze.stages.stage import as_stage, check_stages, is_named


def factors(*callbacks: Any, epochs: int = 3) -> dict[str, float]:
    running = fit(Net(), list(callbacks), epochs=epochs)
    return {group["name"]: round(group["lr"] / 0.1, 6) for group in running.optimizers[0].param_groups}


NAMED = [Stage("top", "head", factor=2.0), Stage("middle", "mid"), Stage("low", "stem", factor=0.3)]


def test_a_factor_of_a_stage_takes_the_place_of_decay_and_multipliers() -> None:
    unfreeze = GradualUnfreeze(NAMED, verbose=False)
    assert factors(unfreeze) == {"top": 2.0, "middle": 1.0, "low": 0.3}
    assert factors(unfreeze, LayerwiseLR(0.5, {"stem": 9.0})) == {"top": 2.0, "middle": 0.5, "low": 0.3}
    assert factors(unfreeze, LayerwiseLR(0.5, stages=NAMED)) == {"top": 2.0, "middle": 0.5, "low": 0.3}


def test_two_factors_of_their_own_for_one_parameter_are_refused() -> None:
    with pytest.raises(PlanError, match=r"two stages give 'head\.weight' a factor of their own, 2 and 3"):
        factors(GradualUnfreeze(NAMED), LayerwiseLR(0.5, stages=[Stage("top", "head", factor=3.0), "mid"]))


def test_multipliers_take_names_of_the_stages_beside_or_of_their_own() -> None:
    unfreeze = GradualUnfreeze([Stage("top", "head"), Stage("low", ["*", "!head"])], verbose=False)
    assert factors(unfreeze, LayerwiseLR(multipliers={"low": 0.1, "top": 3.0})) == {"top": 3.0, "low": 0.1}
    own = LayerwiseLR(multipliers={"low": 0.1}, stages=[Stage("low", "stem")])
    assert factors(own)["low"] == 0.1


def test_limits_of_a_stage_win_for_this_stage() -> None:
    metric = {"monitor": "val", "min_delta": 100.0, "verbose": False}  # improves once, and never again
    stages = [Stage("a", "head", patience=3), Stage("b", "mid", max_epochs=1), "stem"]
    fit(Net(), [GradualUnfreeze(stages, patience=1, **metric), seen := each_epoch()], epochs=6)
    assert seen.seen == ["h", "h", "h", "h", "hm", "hms"]


def test_patience_0_is_patience_1() -> None:
    runs = []
    for patience in (0, 1):
        metric = {"monitor": "val", "min_delta": 100.0, "patience": patience, "verbose": False}
        fit(Net(), [GradualUnfreeze(STAGES, **metric), seen := each_epoch()], epochs=6)
        runs.append(seen.seen)
    assert runs[0] == runs[1] == ["h", "h", "hm", "hm", "hms", "hms"]


def test_the_line_at_a_change_says_why_a_stage_ended_and_what_was_restored(capsys: Any) -> None:
    metric = {"monitor": "val", "patience": 1, "restore_best": True, "max_epochs_per_stage": 3}
    fit(Net(metrics=[1.0, 2.0, 0.5, 0.4, 0.3, 0.2]), [GradualUnfreeze(STAGES, **metric)], epochs=6)
    said = capsys.readouterr().out
    assert (
        "'head' ended because val did not improve on 1 in 1 checks; 'head' is back at its best weights (val=1)" in said
    )
    assert "'mid' ended after its 3 epochs; 'mid' is back at its best weights (val=0.3); unfrozen stem" in said


@pytest.mark.parametrize("callback", [GradualUnfreeze, RotatingUnfreeze, ProgressiveFreeze])
def test_limits_without_a_metric_are_refused(callback: Any) -> None:
    with pytest.raises(PlanError, match="stage 'a': max_epochs and patience can be used only with"):
        callback([Stage("a", "head", max_epochs=2), "mid"])


def test_one_pattern_may_stand_without_a_list() -> None:
    assert Stage("late", "model.layer4").patterns == ["model.layer4"]


@pytest.mark.parametrize(("name", "patterns"), [("", ["a"]), ("a", []), ("a", [""]), ("a", [1]), (None, ["a"])])
def test_a_stage_without_name_or_patterns_is_refused(name: str, patterns: list[str]) -> None:
    with pytest.raises(PlanError, match=r"^a stage needs a name, got|^stage 'a' needs a list of patterns"):
        Stage(name, patterns)


@pytest.mark.parametrize("wrong", ["all", True, 0, -1, 2.5, None])
def test_what_can_be_no_list_of_stages_is_refused(wrong: Any) -> None:
    with pytest.raises(
        PlanError, match=r"owner: stages=.* must be 'auto', a number of stages of at least 1, or a list"
    ):
        check_stages(wrong, "owner")
    with pytest.raises(PlanError, match=r"owner: stages=\[\] is empty"):
        check_stages([], "owner")


def test_an_entry_may_be_a_pattern_a_list_a_stage_or_a_dict() -> None:
    assert as_stage("model.layer4", 0, "owner") == Stage("model.layer4", ["model.layer4"])
    assert as_stage(["a.0", "a.1"], 0, "owner") == Stage("a.0-1", ["a.0", "a.1"])
    assert as_stage({"name": "x", "patterns": "a", "factor": 2.0}, 0, "owner") == Stage("x", ["a"], factor=2.0)
    for wrong, message in [([], "owner stage 3 has no patterns"), (7, "owner stage 3: "), ({"name": "x"}, "stage 3: ")]:
        with pytest.raises(PlanError, match=message):
            as_stage(wrong, 3, "owner")
    with pytest.raises(PatternError, match="owner stage 3: "):
        as_stage("re:(", 3, "owner")


def test_named_stages_are_told_from_a_number_and_from_auto() -> None:
    assert is_named(["head"])
    assert not is_named("auto")
    assert not is_named(3)


@pytest.mark.parametrize("wrong", [{"factor": 0}, {"factor": "x"}, {"max_epochs": 0}, {"patience": -1}])
def test_values_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(PlanError, match=f"stage 'a': {next(iter(wrong))} must be"):
        Stage("a", "head", **wrong)


def test_stages_as_yaml_are_stages_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stages", "torchvision:resnet18", "--max-stages", "3", "--yaml"]) == 0
    (callback,) = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    unfreeze = GradualUnfreeze(**callback["init_args"])
    assert callback["class_path"] == "lightning_freeze.GradualUnfreeze"
    assert len(unfreeze.stages) == 3
