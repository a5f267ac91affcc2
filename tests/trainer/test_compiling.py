"""Every stage trains compiled, however many there are, and the limit is as before afterwards."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import torch
from cached_models import Model
from helpers import Batches, fit, moved, tensors, trainer
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from lightning_freeze import BatchNormEval, GradualUnfreeze
from lightning_freeze.trainer.compiling import Compiling, limits, regions_of

HAS_REGIONS = "recompile_limit" in inspect.signature(torch.compile).parameters
STAGES = [f"layers.{k}" for k in range(9, -1, -1)]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")


class Deep(Model):
    """Ten layers, each a stage; wants rows of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        del self.stem, self.mid, self.head
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in STAGES])
        self.layers[0][1] = nn.BatchNorm1d(4)
        self.limits: list[int] = []
        self.graphs: list[int] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.layers(batch[0])

    def on_train_epoch_end(self) -> None:
        self.limits.append(limits()[0])
        self.graphs.append(self.counter.frame_count)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("how", ["whole", "blocks", "step"])
def test_every_stage_is_compiled_and_trains_as_it_does_uncompiled(how: str, caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    before = limits()
    policies = lambda: [GradualUnfreeze(STAGES, verbose=False), BatchNormEval("layers.0.1", verbose=False)]  # noqa: E731
    plain, model = Deep(), Deep()
    counter = CompileCounterWithBackend("eager")
    plain.counter = model.counter = counter
    fit(plain, policies(), len(STAGES))
    counter.frame_count = 0
    if how == "whole":
        model.layers.compile(backend=counter)
    elif how == "blocks":
        for layer in model.layers:
            layer.compile(backend=counter)
    given = torch.compile(model, backend=counter) if how == "step" else model
    start = tensors(model)
    with caplog.at_level(logging.WARNING, "torch._dynamo"):
        trainer(policies(), len(STAGES)).fit(given, Batches(2), Batches(1))
    assert "recompile_limit" not in caplog.text
    assert not any("limit" in record.getMessage() for record in caplog.records)
    # blocks of one class share graphs, and torch 2.6 needs fewer than there are stages
    if how != "blocks" and torch.__version__ >= "2.7":
        assert all(later > sooner for sooner, later in zip(model.graphs, model.graphs[1:], strict=False))
    # torch has a limit for each compiled region by now: another compiled function keeps its own
    assert all(limit == before[0] if HAS_REGIONS else limit > len(STAGES) for limit in model.limits)
    assert limits() == before
    assert not any(region._recompile_limit for layer in model.layers for region in regions_of([layer]))
    assert moved(start, tensors(model)) == {name for name, _ in model.named_parameters()}
    for name, value in tensors(plain).items():
        torch.testing.assert_close(tensors(model)[name], value)


@pytest.mark.skipif(not HAS_REGIONS, reason="this torch has one limit for all compiled functions")
def test_a_region_keeps_the_limit_that_it_was_given_and_more_room_is_added_to_it() -> None:
    layer = nn.Linear(2, 2)
    given = torch.compile(layer, backend="eager", recompile_limit=3)
    regions, before = regions_of([given]), limits()
    assert [region._recompile_limit for region in regions] == [3] * len(regions)
    room = Compiling(5, regions)
    assert [region._recompile_limit for region in regions] == [27] * len(regions)
    assert limits()[0] == before[0]
    room.close()
    assert [region._recompile_limit for region in regions] == [3] * len(regions)


def test_a_stage_without_gradients_is_said() -> None:
    class Unused(Deep):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.layers[1:](batch[0]), batch[1])

    torch._dynamo.reset()
    model = Unused()
    model.counter = CompileCounterWithBackend("eager")
    model.layers[5].compile(backend="eager")
    with pytest.warns(UserWarning, match=r"'layers\.0\.0\.weight' \(4 parameters in all\) was unfrozen in a compiled"):
        fit(model, [GradualUnfreeze([["*", "!layers.0"], "layers.0"], verbose=False)], 2)


def test_an_uncompiled_model_leaves_the_limit_alone() -> None:
    model = Deep()
    model.counter = CompileCounterWithBackend("eager")
    fit(model, [GradualUnfreeze(STAGES[:2], verbose=False)], 2)
    assert set(model.limits) == {limits()[0]}
