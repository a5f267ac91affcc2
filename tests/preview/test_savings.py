"""What each stage of a schedule costs, relative to training everything."""

from __future__ import annotations

import json
from typing import Any

import pytest
import readme
import savings as benchmark
import torch
import yaml
from helpers import Batches, Net

from lightning_freeze import PlanError
from lightning_freeze.preview.savings import Savings, loss_of, savings

CODE = """
from helpers import Batches, Net as Base

class Net(Base):
    def train_dataloader(self):
        return Batches(2)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Savings:
    folder = tmp_path_factory.mktemp("savings")
    (folder / "costed.py").write_text(CODE)
    unfreeze = {"class_path": "lightning_freeze.GradualUnfreeze", "init_args": {"stages": ["head", "mid", "stem"]}}
    trainer = {"max_epochs": 3, "accelerator": "cpu", "callbacks": [unfreeze]}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"class_path": "costed.Net"}, "trainer": trainer}))
    return savings([folder / "config.yaml"])


def test_each_change_is_measured_and_named(found: Savings) -> None:
    assert [(when, what) for when, what, _ in found.stages] == [
        ("epoch 0, step 0", "head"),
        ("epoch 1, step 2", "mid"),
        ("epoch 2, step 4", "stem"),
    ]


def test_everything_trains_in_the_step_that_others_are_compared_with(found: Savings) -> None:
    whole = sum(parameter.numel() for parameter in Net().parameters())
    assert found.full.trainable == whole == found.stages[-1][2].trainable
    sizes = [cost.trainable for _, _, cost in found.stages]
    assert sizes == sorted(sizes)
    assert [cost.gradients for _, _, cost in found.stages] == [4 * size for size in sizes]
    assert [cost.state for _, _, cost in found.stages] == [4 * size for size in sizes]  # one momentum each


def test_a_frozen_prefix_saves_the_backward_pass(found: Savings) -> None:
    costs = [cost for _, _, cost in found.stages]
    assert costs[0].backward < costs[1].backward < costs[2].backward
    assert costs[0].forward == costs[2].forward == found.full.forward
    assert costs[0].saved < costs[1].saved < costs[2].saved


def test_the_table_has_each_figure_and_its_share(found: Savings) -> None:
    said = found.table()
    assert said.startswith("One training step of Net")
    for when, what, cost in found.stages:
        assert f"{when}: {what}" in said
        assert f"{cost.trainable:,}" in said
        assert f"{cost.trainable / found.full.trainable:.0%}" in said
    assert "everything" in said


def test_a_step_outside_of_a_fit_logs_nowhere_and_leaves_the_module_as_it_was() -> None:
    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int = 0) -> Any:
            self.log("loss", torch.ones(()))
            self.log_dict({})
            return {"loss": super().training_step(batch, 0)}

    model = Logs()
    before = set(vars(model))
    assert loss_of(model, Batches(1).all[0]).requires_grad
    assert set(vars(model)) == before


def test_a_step_without_a_loss_cannot_be_measured() -> None:
    class Manual(Net):
        def training_step(self, batch: Any) -> Any:  # type: ignore[override]
            return None

    with pytest.raises(PlanError, match=r"training_step returned NoneType, not a loss.*\n.*by hand"):
        loss_of(Manual(), Batches(1).all[0])


def test_the_page_shows_the_figures_of_the_benchmark() -> None:
    text = (benchmark.DOCS / "savings.md").read_text()
    figures = json.loads((benchmark.HERE / "savings.json").read_text())
    assert readme.replaced(text, "savings", benchmark.page(figures), "--page") == text
