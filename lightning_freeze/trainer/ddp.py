"""DistributedDataParallel reduces exactly what trains.

DDP's reducer takes the parameters that require a gradient when it is built. A parameter unfrozen later is never
reduced, and the replicas drift apart in silence. So the reducer is built anew when the trainable set changes. The
wrapper stays the same object: whoever holds it goes on with the new reducer. Nothing here needs a Trainer.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel


def rebuild(wrapper: nn.Module | None, *, unused: bool = False) -> bool:
    """Build the reducer of a DDP wrapper anew for what requires a gradient now. False when it is no such wrapper.

    The replicas are equal, so nothing is sent.

    Args:
        wrapper: the module that is called in training.
        unused: whether some of it may get no gradient in a step; otherwise as the user asked.
    """
    if not isinstance(wrapper, DistributedDataParallel):
        return False
    ddp: Any = wrapper
    if unused:
        ddp.find_unused_parameters = True
    ddp._remove_autograd_hooks()
    parameters, sparse = ddp._build_params_for_reducer()
    names = ddp._build_debug_param_to_name_mapping(parameters)
    static, ddp.static_graph = ddp.static_graph, False
    ddp._ddp_init_helper(parameters, sparse, names, static)
    ddp._has_rebuilt_buckets = False
    _take_over(ddp, static)
    return True


def _take_over(ddp: Any, static: bool) -> None:
    """Tell the new reducer what the old one had been told since its construction."""
    if ddp.mixed_precision is not None:
        ddp.reducer._set_mixed_precision_param_dtype(ddp.mixed_precision.param_dtype)
    if static:
        ddp._set_static_graph()
    for hook, state in ddp._comm_hooks:
        _reset(state)
        dist._register_comm_hook(ddp.reducer, state, hook)  # type: ignore[attr-defined]
    if ddp._accum_grad_hooks:  # compiled autograd reduces by hooks in Python
        for handle in ddp._accum_grad_hooks:
            handle.remove()
        ddp._accum_grad_hooks.clear()
        ddp._register_accum_grad_hook()


def _reset(state: Any) -> None:
    """PowerSGD keeps one error and one low-rank matrix per bucket; the buckets are others now."""
    if isinstance(state, PowerSGDState):
        state.error_dict.clear()
        state.p_memory_dict.clear()
        state.q_memory_dict.clear()
