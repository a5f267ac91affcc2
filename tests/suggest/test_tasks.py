"""From what a user has to what is trained: clear errors where that cannot be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from digits_cnn import DigitNet, Digits
from helpers import Batches, Net
from torch import nn

from lightning_freeze import PlanError
from lightning_freeze.suggest.metric import Metric
from lightning_freeze.suggest.tasks import lr_argument, task_of
from lightning_freeze.suggest.trial import trial

OPTIONS = {"max_epochs": 2, "accelerator": "cpu"}


def test_metric_folds_and_length_come_from_what_the_user_has() -> None:
    found = task_of(DigitNet(), Digits(80), OPTIONS)
    assert found.metric == Metric("val_accuracy", "max")
    assert (found.folds.count, found.run_steps, found.package) == (5, 2 * 4, "lightning.pytorch")


class Whole(DigitNet):
    """A module with the loaders in it."""

    def setup(self, stage: str) -> None:
        self.data = Digits(40)
        self.data.setup(stage)

    def train_dataloader(self) -> Any:
        return self.data.train_dataloader()


@pytest.mark.parametrize("data", ["module", "loader", "datamodule"])
def test_data_comes_from_the_module_a_loader_or_a_data_module(data: str) -> None:
    ready = Digits(40)
    ready.setup("fit")
    loader, module = ready.train_dataloader(), Whole() if data == "module" else DigitNet()
    source = {"module": None, "loader": loader, "datamodule": ready}[data]
    found = task_of(module, source, OPTIONS)
    assert sum(map(len, found.folds.parts)) == 40
    assert 0 <= trial(found, [], 1.0, 0, 1.0).value <= 1


class Counted(Digits):
    """The data module's own hook prepares each batch."""

    stages: ClassVar[list[str]] = []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.stages.append("fit" if self.trainer.training else "validate")
        return batch


def test_hooks_of_the_data_module_are_called_in_trials() -> None:
    task = task_of(DigitNet(), Counted(), OPTIONS)
    Counted.stages.clear()
    assert not trial(task, [], 1.0, 0, 1.0).error
    assert Counted.stages == ["fit"] * 8 + ["validate"]


@pytest.mark.parametrize(
    ("module", "data", "options", "message"),
    [
        (nn.Linear(1, 1), None, OPTIONS, "Linear is not a LightningModule"),
        (DigitNet(), Digits(), {"accelerator": "cpu"}, "the run has no length: max_epochs=None"),
        (DigitNet(), Digits(), {"max_epochs": -1, "accelerator": "cpu"}, "the run has no length"),
        (DigitNet(), Digits(1), OPTIONS, "has 1 examples, and at least 2 are needed"),
    ],
)
def test_what_cannot_be_searched_is_said_at_once(module: Any, data: Any, options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        task_of(module, data, options)


def test_an_error_of_the_users_data_is_one_message() -> None:
    class Missing(Digits):
        def setup(self, stage: str) -> None:
            raise FileNotFoundError("no such file: train.parquet")

    with pytest.raises(PlanError, match=r"the training data: FileNotFoundError: no such file: train\.parquet"):
        task_of(DigitNet(), Missing(), OPTIONS)


class Manual(Net):
    validation_step = DigitNet.__mro__[1].validation_step  # Lightning's own

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_by_hand_and_without_validation_nothing_can_judge() -> None:
    with pytest.raises(PlanError, match="optimizes by hand and has no validation_step"):
        task_of(Manual(), [*Batches(4)], OPTIONS)


def test_a_metric_without_a_validation_step_is_an_error() -> None:
    module = Manual()
    module.automatic_optimization = True
    with pytest.raises(PlanError, match="--monitor val: Manual has no validation_step"):
        task_of(module, [*Batches(4)], OPTIONS, monitor="val")


def test_the_argument_that_is_the_rate_is_told_by_name_and_value() -> None:
    def built(**arguments: Any) -> Any:
        return SimpleNamespace(config={"model": {"class_path": "x.Net", "init_args": arguments}})

    assert lr_argument(built(width=3, learning_rate=0.01), 0.01) == "learning_rate"
    assert lr_argument(built(lr=0.02, width=0.01), 0.01) == ""
    assert lr_argument(SimpleNamespace(config={}), 0.01) == ""
    torch.manual_seed(0)
