"""The knowledge about Lightning's strategies: which are refused, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState

from lightning_freeze.errors import UnsupportedStrategyError
from lightning_freeze.model.class_names import is_named

_FSDP1, _FSDP2 = "FSDPStrategy", "ModelParallelStrategy"


def shards(strategy: Any) -> bool:
    """Whether a strategy shards parameters: FSDP and FSDP2."""
    return is_named(strategy, _FSDP1, _FSDP2)


def check_strategy(strategy: Any, owner: str) -> None:
    """Refuse strategies under which freezing cannot be exact.

    Raises:
        UnsupportedStrategyError: DeepSpeed; FSDP without `use_orig_params=True`; DDP that averages models.
    """
    if is_named(strategy, "DeepSpeedStrategy"):
        raise UnsupportedStrategyError(
            f"{owner} cannot work under DeepSpeedStrategy: its engine partitions optimizer state for a fixed set of "
            "parameters.\n  Use strategy='ddp', or FSDP2 through ModelParallelStrategy"
        )
    if is_named(strategy, _FSDP1) and not getattr(strategy, "kwargs", {}).get("use_orig_params", True):
        raise UnsupportedStrategyError(
            f"{owner} cannot work under FSDPStrategy(use_orig_params=False): frozen and trainable parameters end up "
            "in one flat tensor.\n  Use FSDPStrategy(use_orig_params=True) or ModelParallelStrategy"
        )
    if isinstance(getattr(strategy, "_ddp_comm_state", None), PostLocalSGDState):
        raise UnsupportedStrategyError(
            f"{owner} cannot work with post-local SGD: the replicas differ between averages, and what is unfrozen "
            "would not begin equal on all ranks.\n  Use strategy='ddp' without ddp_comm_state, or with another hook"
        )


def check_unused(strategy: Any, owner: str) -> None:
    """Refuse strategies under which ranks cannot use different parts of the model in one step.

    Raises:
        UnsupportedStrategyError: FSDP with several ranks of different data; DDP with a static graph.
    """
    if getattr(strategy, "_ddp_kwargs", {}).get("static_graph"):
        raise UnsupportedStrategyError(
            f"{owner} cannot work with DDPStrategy(static_graph=True): which parameters get a gradient changes from "
            "step to step.\n  Leave static_graph out"
        )
    if shards(strategy) and strategy.distributed_sampler_kwargs["num_replicas"] > 1:
        raise UnsupportedStrategyError(
            f"{owner} cannot work under {type(strategy).__name__} with different data on different ranks: a rank "
            "gathers the weights of a branch where it runs it, and waits for ever when another rank does not.\n"
            "  Use strategy='ddp'"
        )


def check_optimizers(optimizers: Sequence[Any], owner: str) -> None:
    """Refuse optimizers with a fixed assignment of parameters to ranks.

    Raises:
        UnsupportedStrategyError: ZeroRedundancyOptimizer.
    """
    if any(is_named(optimizer, "ZeroRedundancyOptimizer") for optimizer in optimizers):
        raise UnsupportedStrategyError(
            f"{owner} cannot work with ZeroRedundancyOptimizer: which rank updates a parameter is settled when it is "
            "built, and it keeps groups of its own.\n  Use FSDP2 (ModelParallelStrategy), which "
            "shards optimizer state as well, or a plain optimizer"
        )


def check_record(strategy: Any, record: Mapping[str, Any]) -> None:
    """Refuse to save a checkpoint that could not be loaded.

    Raises:
        UnsupportedStrategyError: FSDP with optimizer state set aside or best weights in memory; each rank has a part
            that only FSDP can combine.
    """
    if not is_named(strategy, _FSDP1):
        return
    aside = [name for entry in record["optimizers"] for name in entry["aside"]]
    best = any(policy["snapshot"] for policy in record["policies"])
    if aside or best:
        what = f"the optimizer state of frozen parameters ('{aside[0]}')" if aside else "the best weights of a stage"
        raise UnsupportedStrategyError(
            f"a checkpoint under FSDPStrategy cannot hold {what}: each rank has a part of it in FSDP's own layout.\n"
            "  Use FSDP2 (ModelParallelStrategy), or freeze with optimizer_state='drop' and without restore_best"
        )
