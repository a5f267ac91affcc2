"""Recipes by task: the callbacks of each fit a model of the kind it is for, and every stage comes to train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze import Reconciler
from lightning_freeze.schedule.moments import Progress

PAGE = (Path(__file__).parents[2] / "examples" / "docs" / "recipes.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def tree(**children: Any) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def encoder() -> nn.Module:
    return tree(layer=nn.ModuleList(block() for _ in range(12)))


MODELS = {
    "Transformers": tree(
        model=tree(embeddings=nn.Embedding(3, 2), encoder=encoder(), pooler=nn.Linear(2, 2), classifier=nn.Linear(2, 2))
    ),
    "Segmentation": tree(
        model=tree(backbone=tree(layer3=block(), layer4=block()), classifier=block(), aux_classifier=block())
    ),
    "After self-supervised": tree(backbone=block(), head=nn.Linear(2, 2)),
    "Audio": tree(model=tree(feature_extractor=block(), encoder=block()), head=nn.Linear(2, 2)),
    "Several datasets": tree(backbone=block(), heads=tree(birds=nn.Linear(2, 2), planes=nn.Linear(2, 2))),
}


@pytest.mark.parametrize("task", MODELS)
def test_the_callbacks_of_a_recipe_fit_the_model_it_is_for(task: str) -> None:
    model = MODELS[task]
    namespace: dict[str, Any] = {}
    exec(BLOCK.findall(PAGE)[0], namespace)
    section = PAGE[PAGE.index(f"## {task}") :]
    exec(BLOCK.findall(section)[0], namespace)
    run = Reconciler(model, namespace["callbacks"], [torch.optim.AdamW(model.parameters(), lr=1e-3)])
    run.reconcile(Progress(0, 0, 100))
    before = set(run.trainable)
    run.reconcile(Progress(20, 99, 100))
    assert before <= set(run.trainable)
    if task in ("Transformers", "Segmentation", "After self-supervised"):
        assert set(run.trainable) == set(run.before)
        assert before < set(run.before)
    run.close()
