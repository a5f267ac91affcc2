"""The search space: every choice is a run, for Optuna as well."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from digits_cnn import DigitNet, Digits
from helpers import trainable, trainer

from lightning_freeze import PlanError
from lightning_freeze.suggest import space


def test_every_combination_makes_callbacks_that_freeze_what_it_says() -> None:
    found = space(DigitNet())
    for frozen, decay, norm in product(*(found.choices()[name] for name in ("frozen", "decay", "norm"))):
        specs = found.specs({"frozen": frozen, "decay": decay, "norm": norm, "anchor": 0.0})
        assert len(found.callbacks({"frozen": frozen, "decay": decay, "norm": norm})) == len(specs)
    module, seen = DigitNet(), list[Any]()
    chosen = found.callbacks({"frozen": 3, "decay": 0.5, "norm": "eval"})
    running = trainer(chosen, 1, limit_train_batches=1)
    module.on_train_batch_end = lambda *_: seen.extend(trainable(module))  # type: ignore[method-assign]
    running.fit(module, Digits())
    assert seen == ["head.weight", "head.bias"]


def test_a_model_without_statistics_has_no_mode_to_choose() -> None:
    assert "norm" not in space(torch.nn.Linear(2, 2)).choices()


def test_what_cannot_be_is_an_error() -> None:
    with pytest.raises(PlanError, match="at least one has to train"):
        space(DigitNet()).specs({"frozen": 4})
    with pytest.raises(PlanError, match="must be two numbers greater than 0"):
        space(DigitNet(), rates=(0.1, 0.01))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optuna_searches_it() -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = space(DigitNet())

    def objective(trial: Any) -> float:
        torch.manual_seed(0)
        chosen = found.optuna(trial) | {"anchor": 0.0}
        running = trainer(found.callbacks(chosen), 1, limit_train_batches=2, limit_val_batches=1)
        running.fit(DigitNet(lr=chosen["rate"]), Digits())
        return float(running.callback_metrics["val_loss"])

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)
    assert set(study.best_params) == {"frozen", "decay", "norm", "anchor", "rate"}
