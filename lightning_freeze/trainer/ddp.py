"""Make DistributedDataParallel reduce exactly the trainable parameters.

DDP's reducer covers the parameters that require a gradient when it is built. It never reduces a parameter that is
unfrozen later, so replicas would silently drift apart. So the reducer is rebuilt when the trainable set changes. The
wrapper stays the same object, and references to it stay valid. Nothing here needs a Trainer.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel


def rebuild(wrapper: nn.Module | None, *, unused: bool = False) -> bool:
    """Rebuild the reducer of a DDP wrapper for the current trainable parameters. Returns False for other modules.

    Replicas are equal, so nothing is communicated.

    Args:
        wrapper: the module that is called in training.
        unused: whether parameters may get no gradient in a step; otherwise the user's setting applies.
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
    """Pass on to the new reducer what was set on the old one after its construction."""
    if ddp.mixed_precision is not None:
        ddp.reducer._set_mixed_precision_param_dtype(ddp.mixed_precision.param_dtype)
    if static:
        ddp._set_static_graph()
    for hook, state in ddp._comm_hooks:
        _reset(state)
        dist._register_comm_hook(ddp.reducer, state, hook)  # type: ignore[attr-defined]
    if ddp._accum_grad_hooks:  # compiled autograd reduces in Python hooks
        for handle in ddp._accum_grad_hooks:
            handle.remove()
        ddp._accum_grad_hooks.clear()
        ddp._register_accum_grad_hook()


def _reset(state: Any) -> None:
    """Reset PowerSGD, which keeps an error and a low-rank matrix per bucket: the buckets have changed."""
    if isinstance(state, PowerSGDState):
        state.error_dict.clear()
        state.p_memory_dict.clear()
        state.q_memory_dict.clear()
