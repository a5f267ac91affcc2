"""FSDP2 groups of two dtypes are refused at the start, when both dtypes would train at the same time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from fake_ranks import fake_ranks
from helpers import SHARDS_ON_CPU
from torch import nn

from lightning_freeze import FreezeLayers, GradualUnfreeze, PlanError, Reconciler, RotatingUnfreeze

pytestmark = pytest.mark.skipif(not SHARDS_ON_CPU, reason="FSDP2 on the CPU needs torch 2.7")


def sharded(*, apart: bool = False, **options: Any) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    parts = {"body": nn.Linear(4, 4), "norm": nn.LayerNorm(4).to(torch.bfloat16), "head": nn.Linear(4, 2)}
    model = nn.Sequential(OrderedDict(parts))
    mesh = init_device_mesh("cpu", (2,))
    if apart:
        fully_shard(model.norm, mesh=mesh)
    return fully_shard(model, mesh=mesh, **options)


def start(model: nn.Module, policy: Any) -> Reconciler:
    return Reconciler(model, [policy], [torch.optim.SGD(model.parameters(), lr=0.1)])


def test_a_group_of_two_dtypes_that_will_train_together_is_refused_with_both_stages() -> None:
    with fake_ranks(2):
        model = sharded()
        said = r"'body.weight' \(torch.float32, stage 'body'\) and 'norm.weight' \(torch.bfloat16, stage 'norm'\)"
        with pytest.raises(PlanError, match=said):
            start(model, GradualUnfreeze(["head", "norm", "body"], verbose=False))


@pytest.mark.parametrize(
    "policy",
    [
        GradualUnfreeze(["head", "body"], verbose=False),
        FreezeLayers("norm", verbose=False),
        RotatingUnfreeze([["head", "body"], "norm"], verbose=False),
    ],
    ids=lambda policy: policy.title,
)
def test_dtypes_that_never_train_together_may_share_a_group(policy: Any) -> None:
    with fake_ranks(2):
        start(sharded(), policy)


def test_a_group_of_its_own_or_one_dtype_for_all_gradients_is_right() -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    stages = GradualUnfreeze(["head", "norm", "body"], verbose=False)
    with fake_ranks(2):
        start(sharded(apart=True), stages)
        start(sharded(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)), stages)
