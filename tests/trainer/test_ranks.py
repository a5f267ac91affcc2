"""Strategies and optimizers under which freezing cannot be right are refused, and told the way out."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState

from lightning_freeze import UnsupportedStrategyError
from lightning_freeze.trainer.strategies import check_optimizers, check_record, check_strategy

STATE: dict[str, Any] = {"optimizers": [{"aside": {"model.0.weight": {}}}], "policies": []}
BEST: dict[str, Any] = {"optimizers": [], "policies": [{"snapshot": {"parameters": {}}}]}
NOTHING: dict[str, Any] = {"optimizers": [{"aside": {}}], "policies": [{"snapshot": None}]}


class DeepSpeedStrategy:
    """Named as Lightning's, which needs deepspeed to be built."""


class ZeroRedundancyOptimizer:
    """Named as torch's, which needs a process group to be built."""


def test_strategies_that_share_out_a_fixed_set_are_refused() -> None:
    with pytest.raises(UnsupportedStrategyError, match=r"(?s)LayerwiseLR cannot work under DeepSpeed.*ModelParallel"):
        check_strategy(DeepSpeedStrategy(), "LayerwiseLR")
    with pytest.raises(UnsupportedStrategyError, match=r"(?s)one flat tensor.*use_orig_params=True"):
        check_strategy(FSDPStrategy(use_orig_params=False), "LayerwiseLR")
    check_strategy(FSDPStrategy(), "LayerwiseLR")


def test_replicas_that_are_only_averaged_now_and_then_are_refused() -> None:
    state = PostLocalSGDState(process_group=None, subgroup=None, start_localSGD_iter=1)
    with pytest.raises(UnsupportedStrategyError, match=r"(?s)post-local SGD.*without ddp_comm_state"):
        check_strategy(DDPStrategy(ddp_comm_state=state), "LayerwiseLR")


def test_an_optimizer_that_shares_out_parameters_is_refused() -> None:
    with pytest.raises(UnsupportedStrategyError, match=r"(?s)ZeroRedundancyOptimizer.*FSDP2"):
        check_optimizers([ZeroRedundancyOptimizer()], "LayerwiseLR")


@pytest.mark.parametrize(("record", "what"), [(STATE, r"optimizer state .*'model\.0\.weight'"), (BEST, "best weights")])
def test_fsdp_checkpoints_hold_no_state_of_frozen_parameters(record: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedStrategyError, match=rf"(?s){what}.*optimizer_state='drop'"):
        check_record(FSDPStrategy(), record)
    check_record(FSDPStrategy(), NOTHING)
    check_record(DDPStrategy(), record)
