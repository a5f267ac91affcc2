"""The settings of torch that change results: around a call and in the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._device import DeviceContext

_EXEMPT = (DeviceContext,)


def conditions() -> tuple[Any, ...]:
    """The settings around a call, besides arguments and weights, that change its results, such as autocast."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cpu"),
        torch.get_autocast_dtype("cuda"),
    )


@contextmanager
def under(now: tuple[Any, ...]) -> Iterator[None]:
    """Restore recorded settings for a block."""
    if now == conditions():
        yield
        return
    grad, inference, cpu, cuda, cpu_type, cuda_type = now
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(torch.autocast("cpu", cpu_type, enabled=cpu))
        if cuda or torch.is_autocast_enabled("cuda"):
            stack.enter_context(torch.autocast("cuda", cuda_type, enabled=cuda))
        yield


def settings() -> tuple[Any, ...]:
    """Global torch settings that change a module's output."""
    backends = torch.backends
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.allow_tf32,
        backends.mkldnn.enabled if hasattr(backends.mkldnn, "enabled") else None,
    )


def unusual() -> bool:
    """Whether a mode or transform of torch is active, which must see every operation."""
    if torch._C._functorch.maybe_current_level() is not None or torch._C._len_torch_dispatch_stack():
        return True
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    if not all(isinstance(mode, _EXEMPT) for mode in modes):
        return True
    hooks = nn.modules.module
    return (
        bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
        or torch._C._get_tracing_state() is not None
    )
