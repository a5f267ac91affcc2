"""What is said of measurements: the choice, what is clear and what is not, and the block."""

from __future__ import annotations

import pytest
import yaml
from suggestions import CLEAR, entry, suggestion

from lightning_freeze.suggest.candidates import Candidate
from lightning_freeze.suggest.suggestion import dropped_of, sentences


def test_what_is_clearly_better_is_called_so() -> None:
    cheapest, full = sentences(CLEAR)
    assert cheapest.startswith(
        "decay, BatchNorm eval is clearly better than the cheapest (head, BatchNorm eval, lr 0.001)"
    )
    assert "costs 50% of its step" in cheapest
    assert full.startswith("decay, BatchNorm eval is clearly better than full fine-tuning")


def test_what_is_not_clearly_better_is_called_so() -> None:
    found = suggestion(entry("decay", [0.80, 0.70, 0.90], 0.2), entry("head", [0.79, 0.81, 0.78], 0.1))
    assert "is not clearly better than the cheapest" in sentences(found)[0]


def test_one_fold_has_no_interval_and_nothing_is_clear() -> None:
    found = suggestion(entry("decay", [0.9], 0.2), entry("head", [0.1], 0.1))
    assert "not clearly better" in sentences(found)[0]
    assert "no interval from 1 fold" in sentences(found)[0]


def test_less_is_better_of_a_loss() -> None:
    found = suggestion(entry("decay", [0.1, 0.11, 0.12], 0.2), entry("head", [0.9, 0.91, 0.9], 0.1), mode="min")
    assert found.against(found.entries[1]).mean == pytest.approx(0.793, abs=1e-3)
    assert found.clearly_better_than(found.entries[1])


def test_the_rate_goes_into_the_models_argument_where_it_has_one() -> None:
    model = {"class_path": "x.Net", "init_args": {"width": 3, "lr": 1.0}}
    block = yaml.safe_load(suggestion(CLEAR.best, lr_argument="lr", config={"model": model}).yaml())
    assert block["model"] == {"class_path": "x.Net", "init_args": {"width": 3, "lr": 1e-3}}
    assert yaml.safe_load(suggestion(CLEAR.best, lr_argument="lr").yaml())["model"] == {"lr": 1e-3}


def test_else_the_rate_is_a_factor_on_the_modules_own() -> None:
    found = suggestion(entry("all", [0.5], 0.1, rate=3e-3))
    assert found.specs()[-1] == {
        "class_path": "lightning_freeze.LayerwiseLR", "init_args": {"multipliers": {"*": 3.0}}
    }  # fmt: skip
    assert [type(one).__name__ for one in found.callbacks()] == ["BatchNormEval", "LayerwiseLR"]


def test_the_users_other_callbacks_and_the_level_of_the_config_stay() -> None:
    kept = {"callbacks": [{"class_path": "x.Stop"}], "nested": True}
    block = yaml.safe_load(suggestion(CLEAR.best, config=kept).yaml())
    assert [one["class_path"] for one in block["fit"]["trainer"]["callbacks"]][:2] == [
        "x.Stop", "lightning_freeze.LayerwiseLR",
    ]  # fmt: skip


def test_who_left_early_is_named_with_the_last_value() -> None:
    head, full = Candidate("head", "", 0.1), Candidate("all", "", 0.1)
    values = {(head, 0.25): {0: 0.5}, (head, 0.5): {0: 0.6}, (full, 0.25): {0: 0.4}, (full, 1.0): {0: 0.9}}
    assert dropped_of(values, [full]) == [(head, "0.600 after 50% of a run")]
