"""DistributedDataParallel holds exactly what trains, and ranks that disagree say so instead of hanging.

DDP's reducer takes only parameters that require a gradient when it is built: what is unfrozen later is never
reduced, and the replicas drift apart in silence. So the wrapper is built anew when the trainable set changes.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.errors import FreezeError, UnsupportedStrategyError

# Strategies that flatten, shard or copy parameters when they wrap the model, before anything can be frozen.
_REFUSED = {
    "DeepSpeedStrategy": "its engine partitions optimizer state for a fixed set of parameters",
    "XLAFSDPStrategy": "it flattens parameters that would have to be frozen one by one",
}

# The replicas are equal, so nothing has to be sent: 57 ms become 1.3 ms for a ResNet-18. Torch before 2.7 always does.
_NO_SYNC = {"init_sync": False} if "init_sync" in inspect.signature(DistributedDataParallel).parameters else {}


def check_strategy(strategy: Any, owner: str) -> None:
    """Refuse strategies under which freezing cannot be right.

    Raises:
        UnsupportedStrategyError: DeepSpeed; FSDP without `use_orig_params=True`; DDP that averages models.
    """
    names = {cls.__name__ for cls in type(strategy).__mro__}
    for refused in sorted(names & set(_REFUSED)):
        raise UnsupportedStrategyError(
            f"{owner} cannot work under {refused}: {_REFUSED[refused]}.\n  Use strategy='ddp', or FSDP2 through "
            "ModelParallelStrategy"
        )
    if "FSDPStrategy" in names and not getattr(strategy, "kwargs", {}).get("use_orig_params", True):
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
    """Refuse strategies under which the ranks cannot use different parts of the model in one step.

    Raises:
        UnsupportedStrategyError: FSDP with several ranks of different data; DDP with a static graph.
    """
    if getattr(strategy, "_ddp_kwargs", {}).get("static_graph"):
        raise UnsupportedStrategyError(
            f"{owner} cannot work with DDPStrategy(static_graph=True): which parameters get a gradient changes from "
            "step to step.\n  Leave static_graph out"
        )
    names = {cls.__name__ for cls in type(strategy).__mro__}
    if names & {"FSDPStrategy", "ModelParallelStrategy"} and strategy.distributed_sampler_kwargs["num_replicas"] > 1:
        raise UnsupportedStrategyError(
            f"{owner} cannot work under {type(strategy).__name__} with different data on different ranks: a rank "
            "gathers the weights of a branch where it runs it, and waits for ever when another rank does not.\n"
            "  Use strategy='ddp'"
        )


def check_optimizers(optimizers: Sequence[Any], owner: str) -> None:
    """Refuse optimizers that share parameters out among ranks for good.

    Raises:
        UnsupportedStrategyError: ZeroRedundancyOptimizer.
    """
    if any(cls.__name__ == "ZeroRedundancyOptimizer" for one in optimizers for cls in type(one).__mro__):
        raise UnsupportedStrategyError(
            f"{owner} cannot work with ZeroRedundancyOptimizer: which rank updates a parameter is settled when it is "
            "built, and it keeps groups of its own.\n  Use FSDP2 (ModelParallelStrategy), which "
            "shards optimizer state as well, or a plain optimizer"
        )


def check_record(strategy: Any, record: Mapping[str, Any]) -> None:
    """Refuse to save what could not be loaded again.

    Raises:
        UnsupportedStrategyError: FSDP with optimizer state set aside or best weights in memory, of which each rank
            has a part that only FSDP can put together.
    """
    if "FSDPStrategy" not in {cls.__name__ for cls in type(strategy).__mro__}:
        return
    aside = [name for entry in record["optimizers"] for name in entry["aside"]]
    best = any(policy["state"].get("best_weights") for policy in record["policies"])
    if aside or best:
        what = f"the optimizer state of frozen parameters ('{aside[0]}')" if aside else "the best weights of a stage"
        raise UnsupportedStrategyError(
            f"a checkpoint under FSDPStrategy cannot hold {what}: each rank has a part of it in FSDP's own layout.\n"
            "  Use FSDP2 (ModelParallelStrategy), or freeze with optimizer_state='drop' and without restore_best"
        )


def rebuild(strategy: Any, *, unused: bool = False) -> bool:
    """Build the DDP wrapper of a strategy anew for what requires a gradient now. False when it has none.

    Args:
        strategy: the Trainer's.
        unused: whether some of it may get no gradient in a step; otherwise as the user asked.
    """
    old = strategy.model
    if not isinstance(old, DistributedDataParallel):
        return False
    old._remove_autograd_hooks()  # type: ignore[no-untyped-call]
    options = strategy._ddp_kwargs
    strategy._ddp_kwargs = {**options, **_NO_SYNC} | ({"find_unused_parameters": True} if unused else {})
    try:
        strategy.model = strategy._setup_model(old.module)
    finally:
        strategy._ddp_kwargs = options
    _reset(strategy._ddp_comm_state)
    strategy._register_ddp_hooks()
    strategy._pl_static_graph_delay_done = False
    return True


def _reset(state: Any) -> None:
    """PowerSGD keeps one error and one low-rank matrix per bucket; the buckets are others now."""
    if isinstance(state, PowerSGDState):
        state.error_dict.clear()
        state.p_memory_dict.clear()
        state.q_memory_dict.clear()


def digest(names: Collection[str]) -> str:
    """A short hash of a set of names."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def check_agreement(trainable: Collection[str]) -> None:
    """Make sure that all ranks train the same parameters, before a rebuild that would hang or abort.

    Raises:
        FreezeError: they do not; on every rank, with the first difference.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    if len(set(_gather(digest(trainable)))) == 1:
        return
    sides = [set(names) for names in _gather(sorted(trainable))]
    for rank, side in enumerate(sides):
        if difference := sorted(side ^ sides[0]):
            name = difference[0]
            trains, frozen = (rank, 0) if name in side else (0, rank)
            raise FreezeError(
                f"ranks disagree about what trains: '{name}' ({len(difference)} parameters in all) trains on rank "
                f"{trains} and is frozen on rank {frozen}.\n  Make what decides it the same on all ranks"
            )


def _gather(value: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def union(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which of the flags are set on any rank: one small reduction, which all ranks take part in."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(flags)
    bits = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(bits, dist.ReduceOp.MAX)
    return [bool(bit) for bit in bits.tolist()]


def from_rank_0(value: Any) -> Any:
    """The value of rank 0, on every rank; where no strategy is at hand."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]
    return value
