"""Strategies and optimizers under which freezing cannot be right are refused, and told the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import STAGES, Net, Spy, fit
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
from torch.distributed.optim import ZeroRedundancyOptimizer

from lightning_freeze import FreezeLayers, GradualUnfreeze, UnsupportedStrategyError
from lightning_freeze.trainer.strategies import check_optimizers, check_record, check_strategy, check_unused, shards


def record_of(callbacks: list[Any]) -> dict[str, Any]:
    """What a real run puts into its checkpoints, at the end of its second epoch of three."""
    saved: list[dict[str, Any]] = []

    def save(trainer: Any, model: Any) -> None:
        checkpoint: dict[str, Any] = {}
        callbacks[0].on_save_checkpoint(trainer, model, checkpoint)
        saved.append(checkpoint["lightning_freeze"])

    fit(Net(metrics=(1.0, 2.0, 2.0)), [*callbacks, Spy("on_train_epoch_end", save)], epochs=3)
    return saved[1]


def test_a_strategy_whose_engine_fixes_the_trainable_set_is_refused() -> None:
    deepspeed = object.__new__(DeepSpeedStrategy)  # its constructor needs the deepspeed package
    with pytest.raises(UnsupportedStrategyError, match=r"(?s)LayerwiseLR cannot work under DeepSpeed.*ModelParallel"):
        check_strategy(deepspeed, "LayerwiseLR")
    with pytest.raises(UnsupportedStrategyError, match=r"(?s)one flat tensor.*use_orig_params=True"):
        check_strategy(FSDPStrategy(use_orig_params=False), "LayerwiseLR")
    check_strategy(FSDPStrategy(), "LayerwiseLR")


def test_replicas_that_are_only_averaged_now_and_then_are_refused() -> None:
    state = PostLocalSGDState(process_group=None, subgroup=None, start_localSGD_iter=1)
    with pytest.raises(UnsupportedStrategyError, match=r"(?s)post-local SGD.*without ddp_comm_state"):
        check_strategy(DDPStrategy(ddp_comm_state=state), "LayerwiseLR")


def test_a_static_graph_is_refused_where_branches_idle() -> None:
    with pytest.raises(UnsupportedStrategyError, match=r"(?s)static_graph=True.*Leave static_graph out"):
        check_unused(DDPStrategy(static_graph=True), "TaskFreeze")
    check_unused(DDPStrategy(), "TaskFreeze")


@pytest.mark.usefixtures("gloo")
def test_an_optimizer_that_shares_out_parameters_is_refused() -> None:
    plain = torch.optim.SGD(Net().parameters(), 0.1)
    zero = ZeroRedundancyOptimizer(Net().parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(UnsupportedStrategyError, match=r"(?s)ZeroRedundancyOptimizer.*FSDP2"):
        check_optimizers([plain, zero], "LayerwiseLR")
    check_optimizers([plain], "LayerwiseLR")


def test_which_strategies_shard() -> None:
    assert [shards(one) for one in (FSDPStrategy(), ModelParallelStrategy(), DDPStrategy())] == [True, True, False]


def test_fsdp_checkpoints_hold_no_best_weights_and_no_state_of_frozen_parameters() -> None:
    best = record_of([GradualUnfreeze(STAGES[:2], monitor="val", patience=1, restore_best=True, verbose=False)])
    aside = record_of([FreezeLayers("stem", start=1, verbose=False)])
    dropped = record_of([FreezeLayers("stem", start=1, optimizer_state="drop", verbose=False)])
    for record, reason in ((best, "best weights"), (aside, r"optimizer state .*'stem\.0\.weight'")):
        with pytest.raises(UnsupportedStrategyError, match=rf"(?s){reason}.*optimizer_state='drop'"):
            check_record(FSDPStrategy(), record)
        check_record(DDPStrategy(), record)
    check_record(FSDPStrategy(), dropped)
