"""Fixtures that several files use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture
def gloo() -> Iterator[None]:
    """A process group of this process alone; it sets no MASTER_PORT, which jobs launched later would inherit."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()
