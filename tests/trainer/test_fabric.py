"""Fabric's wrappers and strategies, in one process: what is inside, what is refused, what is loaded first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.fabric
import pytest
import torch
from torch import nn

from lightning_freeze import Freezer, GradualUnfreeze, UnsupportedStrategyError
from lightning_freeze.trainer.fabric import (
    check_fabric,
    guard,
    release,
    strategy_of,
    unwrapped,
    unwrapped_optimizer,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


@pytest.fixture
def fabric() -> Any:
    return lightning.fabric.Fabric(accelerator="cpu", devices=1)


def test_the_module_and_the_optimizer_of_the_user_are_found_inside_the_wrappers(fabric: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    assert wrapped is not model
    assert unwrapped(wrapped) is model
    assert unwrapped_optimizer(wrapped_optimizer) is optimizer
    assert strategy_of(wrapped) is fabric.strategy


def test_what_is_not_wrapped_stays_and_has_no_strategy() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert unwrapped(model) is model
    assert unwrapped_optimizer(optimizer) is optimizer
    assert strategy_of(model) is None


def test_ddp_and_compile_are_unwrapped_in_any_order(fabric: Any, gloo: None) -> None:
    model = network()
    assert unwrapped(torch.compile(model)) is model
    assert unwrapped(nn.parallel.DistributedDataParallel(model)) is model
    assert unwrapped(torch.compile(nn.parallel.DistributedDataParallel(model))) is model
    assert unwrapped(fabric.setup(torch.compile(model))) is model


def test_fsdp1_is_refused_with_what_to_use(fabric: Any) -> None:
    with pytest.raises(
        UnsupportedStrategyError, match=r"Freezer cannot work under Fabric's FSDPStrategy.*\n  Use FSDP2"
    ):
        check_fabric(lightning.fabric.strategies.FSDPStrategy(), "Freezer")
    check_fabric(fabric.strategy, "Freezer")


def run(fabric: Any) -> tuple[Any, Any, Freezer]:
    model, optimizer = fabric.setup(model := network(), torch.optim.Adam(model.parameters(), 0.1))
    return model, optimizer, Freezer(model, [GradualUnfreeze(["1", "0"])], optimizer, verbose=False)


def test_the_freezer_is_loaded_before_the_optimizer_wherever_it_stands(fabric: Any, tmp_path: Path) -> None:
    model, optimizer, freezer = run(fabric)
    for epoch in range(2):
        freezer.epoch(epoch)
        fabric.backward(model(torch.ones(3, 2)).sum())
        optimizer.step()
    fabric.save(tmp_path / "run.ckpt", {"optimizer": optimizer, "model": model, "freezer": freezer})
    freezer.close()

    other, other_optimizer, again = run(fabric)
    state = {"optimizer": other_optimizer, "model": other, "freezer": again}
    fabric.load(tmp_path / "run.ckpt", state)
    assert list(state) == ["optimizer", "model", "freezer"]
    assert state["freezer"] is again
    assert [len(group["params"]) for group in other_optimizer.param_groups] == [2, 2]
    for mine, saved in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, saved)
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(other_optimizer.state[mine][key], optimizer.state[saved][key])
    again.close()


def test_the_strategy_is_as_before_when_it_is_released(fabric: Any) -> None:
    before = set(vars(fabric.strategy))
    guard(fabric.strategy, object(), [])  # type: ignore[arg-type]
    assert set(vars(fabric.strategy)) - before == {"load_checkpoint"}
    release(fabric.strategy)
    assert set(vars(fabric.strategy)) == before


def test_a_state_without_the_freezer_is_loaded_as_ever(fabric: Any, tmp_path: Path) -> None:
    model = fabric.setup(network())
    fabric.save(tmp_path / "plain.ckpt", {"model": model})
    other = fabric.setup(network())
    nn.init.zeros_(other.module[0].weight)
    guard(fabric.strategy, object(), [])  # type: ignore[arg-type]
    fabric.load(tmp_path / "plain.ckpt", {"model": other})
    assert torch.equal(other.module[0].weight, network()[0].weight)
