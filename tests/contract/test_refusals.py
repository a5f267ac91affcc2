"""What is refused, when, and with which words: arguments at construction, names at setup, plans before training."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import (
    STAGES,
    Net,
    NeverTrains,
    Spy,
    fit,
    trainable,
)
from torch import nn

from lightning_freeze import (
    BatchNormEval,
    FeatureCache,
    FreezeAudit,
    FreezeError,
    FreezeLayers,
    GradualUnfreeze,
    LayerAdaptiveLR,
    LayerwiseLR,
    PatternError,
    PlanError,
    ProgressiveFreeze,
    RotatingUnfreeze,
    Stage,
    TaskFreeze,
)


def test_every_error_is_a_value_error_with_one_base() -> None:
    assert issubclass(FreezeError, ValueError)
    assert all(issubclass(error, FreezeError) for error in (PatternError, PlanError))


# ---- arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradualUnfreeze("head"), "stages='head' must be 'auto', a number of stages"),
        (lambda: GradualUnfreeze(0), "stages=0 must be"),
        (lambda: GradualUnfreeze(True), "stages=True must be"),
        (lambda: GradualUnfreeze(None), "stages=None must be"),
        (lambda: GradualUnfreeze([]), r"stages=\[\] is empty"),
        (lambda: GradualUnfreeze(["head", 3]), "stage 1.*must be a string or a list of strings, got 3"),
        (lambda: GradualUnfreeze(["head", []]), "stage 1 has no patterns"),
        (lambda: GradualUnfreeze(every_n_epochs=1, at=[0, 1]), "every_n_epochs and at are given.*one trigger"),
        (lambda: GradualUnfreeze(monitor="val", curve="linear"), "curve and monitor are given"),
        (lambda: GradualUnfreeze(every_n_epochs=0), "every_n_epochs must be a whole number of at least 1, got 0"),
        (lambda: GradualUnfreeze(every_n_train_steps=1.5), "every_n_train_steps must be a whole number.*got 1.5"),
        (lambda: GradualUnfreeze(at=[1, 2]), "must begin with 0"),
        (lambda: GradualUnfreeze(at=[0, 5, 3]), "must not decrease"),
        (lambda: GradualUnfreeze(curve="step"), "curve must be one of 'linear', 'cosine', got 'step'"),
        (lambda: GradualUnfreeze(curve="linear", span=(0.5, 0.2)), "span="),
        (lambda: GradualUnfreeze(span=(0.1, 0.9)), "has a meaning only with curve"),
        (lambda: GradualUnfreeze(monitor="val", mode="best"), "mode must be one of 'min', 'max', got 'best'"),
        (lambda: GradualUnfreeze(monitor="val", min_delta=-1), "min_delta must not be negative"),
        (lambda: GradualUnfreeze(restore_best=True), "only with monitor"),
        (lambda: GradualUnfreeze(max_epochs_per_stage=3), "only with monitor"),
        (lambda: GradualUnfreeze(patience=5, mode="max"), "mode and patience can be used only with monitor"),
        (lambda: GradualUnfreeze(monitor="val", max_epochs_per_stage=0), "max_epochs_per_stage must be"),
        (lambda: GradualUnfreeze(warmup_steps=-1), "warmup_steps must be"),
        (lambda: FreezeLayers([]), "patterns is empty"),
        (lambda: FreezeLayers("x", -1), "start must be a whole number of at least 0"),
        (lambda: FreezeLayers("x", 3, 3), "stop=3 must be after start=3, both in epochs"),
        (lambda: FreezeLayers("x", stop=0), "stop must be"),
        (lambda: FreezeLayers("x", unit="batch"), "unit must be one of 'epoch', 'step', got 'batch'"),
        (lambda: FreezeLayers("x", optimizer_state="gpu"), "optimizer_state must be one of"),
        (lambda: LayerwiseLR(), "give decay, multipliers, or both"),
        (lambda: LayerwiseLR(multipliers={}), "give decay, multipliers, or both"),
        (lambda: LayerwiseLR(0), "decay must be greater than 0 and at most 1, got 0"),
        (lambda: LayerwiseLR(1.1), "decay must be"),
        (lambda: LayerwiseLR(float("nan")), "decay must be"),
        (lambda: LayerwiseLR(multipliers={"head": 0}), "the factor of 'head' must be greater than 0.*FreezeLayers"),
        (lambda: LayerwiseLR(multipliers={"head": float("inf")}), "the factor of 'head'"),
        (lambda: LayerwiseLR(0.5, stages=0), "stages=0 must be"),
        (lambda: LayerwiseLR("0.5"), "decay must be a finite number, got '0.5'"),
        (lambda: LayerwiseLR(multipliers={"head": None}), "the factor of 'head' must be a finite number, got None"),
        (lambda: LayerwiseLR(multipliers=["head"]), "multipliers=.'head'. must be a dict"),
        (lambda: GradualUnfreeze(span=None), "span=None must be a pair"),
        (lambda: GradualUnfreeze(monitor="val", min_delta=float("nan")), "min_delta must be a finite number, got nan"),
        (lambda: GradualUnfreeze(monitor="val", restore_best="no"), "restore_best must be true or false, got 'no'"),
        (lambda: ProgressiveFreeze(span=("a", "b")), "span=.'a', 'b'. must be a pair"),
        (lambda: ProgressiveFreeze(span=0.5), "span=0.5 must be a pair"),
        (lambda: ProgressiveFreeze(percentile=None), "percentile must be a finite number, got None"),
        (lambda: ProgressiveFreeze(eval_frozen="no"), "eval_frozen must be true or false, got 'no'"),
        (lambda: RotatingUnfreeze(eval_frozen=0), "eval_frozen must be true or false, got 0"),
        (lambda: FreezeLayers("x", eval_frozen=None), "eval_frozen must be true or false, got None"),
        (lambda: LayerAdaptiveLR(min_factor="0.1"), "min_factor must be a finite number, got '0.1'"),
        (lambda: LayerAdaptiveLR(max_factor=True), "max_factor must be a finite number, got True"),
        (lambda: BatchNormEval(memory_efficient="no"), "memory_efficient must be true or false, got 'no'"),
        (lambda: FeatureCache(verify="no"), "verify must be true or false, got 'no'"),
        (lambda: FeatureCache("disk", dir=3), "dir=3 must be the path of a folder"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_construction(make: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"(?s){message}"):
        make()


@pytest.mark.parametrize("wrong", [3, "", [3], [""], {"stem": 1}, {"stem"}, b"stem"])
@pytest.mark.parametrize(
    "make",
    [
        FreezeLayers,
        BatchNormEval,
        lambda patterns: TaskFreeze({"one": patterns}),
        lambda patterns: RotatingUnfreeze(always=patterns),
        lambda patterns: FreezeAudit(ignore=patterns),
    ],
)
def test_patterns_of_another_kind_are_refused_at_construction(make: Any, wrong: Any) -> None:
    with pytest.raises(PatternError, match="patterns must be a string or a list of strings, got"):
        make(wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreezeLayers("re:("), "FreezeLayers: pattern 're:\\(' is not a valid regular expression"),
        (lambda: GradualUnfreeze(["head", "kind:nrm"]), "GradualUnfreeze stage 1: .*Kinds: bias, embedding, norm"),
        (lambda: LayerwiseLR(multipliers={"head &": 2.0}), "LayerwiseLR multipliers: .*nothing on one side of '&'"),
        (lambda: FreezeAudit(ignore="kind:x"), "FreezeAudit ignore: pattern 'kind:x'"),
        (lambda: TaskFreeze({"a": "kind:x"}), "TaskFreeze task 'a': pattern 'kind:x'"),
    ],
)
def test_patterns_that_cannot_be_read_are_refused_at_construction(make: Any, message: str) -> None:
    with pytest.raises(PatternError, match=f"(?s){message}"):
        make()


# ---- names and plans


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            GradualUnfreeze(["head", Stage("late", ["mod"])]),
            r"GradualUnfreeze stage 'late': pattern 'mod' matches none of the 8 parameters of Never.*Closest: mid",
        ),
        (
            GradualUnfreeze(["head", ["mid", "re:stm.*"]]),
            r"stage 'mid-and-1-more': pattern 're:stm\.\*'.*Closest: .*stem",
        ),
        (FreezeLayers(["stem", "!stem.7"]), r"FreezeLayers: pattern '!stem\.7'.*Closest: stem"),
        (FreezeLayers("!stem"), "takes away from the patterns before it"),
        (FreezeLayers("stem.2"), "'stem.2' is a module without any"),
        (LayerwiseLR(multipliers={"heads": 2.0}), "LayerwiseLR multipliers: pattern 'heads'.*Closest: head"),
        (LayerwiseLR(0.5, stages=["haed"]), "LayerwiseLR stage 'haed'.*Closest: head"),
        (BatchNormEval("head"), "BatchNormEval: pattern 'head' matches none of the 2 normalisation layers"),
    ],
)
def test_names_are_checked_at_setup(callback: Any, message: str) -> None:
    model, asked = NeverTrains(), Spy("on_fit_start", lambda *_: None)
    with pytest.raises(PatternError, match=f"(?s){message}"):
        fit(model, [callback, asked], num_sanity_val_steps=2)
    assert asked.seen == []
    assert len(trainable(model)) == 8


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            [GradualUnfreeze(["head", "head.weight"])],
            "stage 'head.weight': .* leave it no parameters, all 1 belong to earlier",
        ),
        ([GradualUnfreeze([["head", "!head"]])], "leave it no parameters"),
        ([GradualUnfreeze(["head", "mid"], at=[0, 1, 2])], "3 starts for 2 stages"),
        ([GradualUnfreeze([Stage("a", ["head"]), Stage("a", ["mid"])])], r"several stages are called \['a'\]"),
        ([FreezeLayers(["stem", "!stem"])], "leave nothing to freeze"),
        (
            [GradualUnfreeze(["head"]), GradualUnfreeze(["mid"]), LayerwiseLR(0.5)],
            "several GradualUnfreeze with different",
        ),
        ([FreezeLayers("*")], r"nothing would train in epoch 0, step 0: frozen by FreezeLayers \(8 of 8\)"),
        (
            [FreezeLayers("head"), GradualUnfreeze(STAGES)],
            r"nothing would train.*FreezeLayers \(2 of 8\), GradualUnfreeze \(6 of 8\)",
        ),
    ],
)
def test_plans_that_cannot_work_are_refused_before_training(callbacks: list[Any], message: str) -> None:
    model = NeverTrains()
    with pytest.raises(PlanError, match=f"(?s){message}"):
        fit(model, callbacks)
    assert len(trainable(model)) == 8


def test_a_model_that_trains_nothing_before_the_fit_is_refused() -> None:
    model = NeverTrains().requires_grad_(False)
    with pytest.raises(PlanError, match="no parameter required a gradient before the fit"):
        fit(model, [LayerwiseLR(0.5, stages=STAGES)])


def test_a_model_with_lazy_layers_that_saw_no_batch_is_refused() -> None:
    model = NeverTrains()
    model.mid[0] = nn.LazyLinear(4)
    with pytest.raises(PlanError, match=r"FreezeLayers: 2 of the 9 parameters of NeverTrains have no shape yet"):
        fit(model, [FreezeLayers("stem")])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_schedule_that_freezes_everything_later_says_when() -> None:
    model = Net()
    with pytest.raises(PlanError, match="nothing would train in epoch 1, step 2: frozen by FreezeLayers"):
        fit(model, [FreezeLayers("*", 1, 2)])
    assert len(trainable(model)) == 8


def test_a_schedule_in_fractions_of_a_run_without_end_is_refused() -> None:
    with pytest.raises(PlanError, match="how long the run is, and this one has no end"):
        fit(NeverTrains(), [GradualUnfreeze(STAGES, at=[0, 0.2, 0.5])], epochs=-1)
