"""A fake device mesh for modules that shard themselves in `configure_model`: one process acts as rank 0 of many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lightning_freeze.errors import PlanError


@contextmanager
def mesh_of(model: Any, strategy: Any, devices: int, nodes: int) -> Iterator[None]:
    """Give a LightningModule the device mesh that `ModelParallelStrategy` would create.

    Collectives in its process group do nothing, so a preview must not depend on them. Other strategies have no mesh.

    Args:
        model: the LightningModule.
        strategy: the strategy of the config.
        devices: number of devices per node.
        nodes: number of nodes.

    Raises:
        PlanError: the product of the sizes is not the number of processes.
    """
    if not str(getattr(strategy, "class_path", "")).endswith("ModelParallelStrategy") or dist.is_initialized():
        yield
        return
    arguments: Mapping[str, Any] = strategy.get("init_args") or {}
    data, tensor = (arguments.get(f"{kind}_parallel_size", "auto") for kind in ("data", "tensor"))
    sizes = nodes if data in ("auto", None) else int(data), devices if tensor in ("auto", None) else int(tensor)
    if sizes[0] * sizes[1] != devices * nodes:
        raise PlanError(
            f"ModelParallelStrategy: data_parallel_size={sizes[0]} times tensor_parallel_size={sizes[1]} must be the "
            f"number of processes, {devices * nodes}"
        )
    from torch.testing._internal.distributed.fake_pg import FakeStore  # importing it registers the backend "fake"

    dist.init_process_group("fake", rank=0, world_size=sizes[0] * sizes[1], store=FakeStore())
    try:
        names = ("data_parallel", "tensor_parallel")
        model._device_mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
        yield
    finally:
        dist.destroy_process_group()
