"""What a step needs is kept, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.cache.memo import FrozenMemo
from lightning_freeze.cache.row_store import Storage


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mid = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 2)


STEPS: dict[str, tuple[Callable[[Net, Tensor], Tensor], list[str]]] = {
    "the last": (lambda net, x: net.head(net.mid(net.stem(x))).sum(), ["mid"]),
    "both": (lambda net, x: (net.head(net.mid(net.stem(x))) + net.head(net.stem(x))).sum(), ["mid", "stem"]),
    "a function of it": (lambda net, x: net.head(torch.relu(net.stem(x)).mul(2)).sum(), ["stem"]),
    "none": (lambda net, x: net.head(x).sum(), []),
}


@pytest.mark.parametrize("what", STEPS)
def test_results_that_meet_what_trains_are_kept(what: str) -> None:
    step, kept = STEPS[what]
    model, said = Net(), list[str]()
    cache, batch = FrozenMemo(model, Storage(1 << 16), say=said.append, warn=said.append), torch.randn(8, 8)
    for _ in range(3):
        cache.run(lambda inputs: step(model, inputs), batch)
    assert sorted(said) == [f"FeatureCache: what comes out of '{name}' is kept" for name in kept]
    assert (cache.hits > 0) == bool(kept)


def test_an_input_that_is_new_each_time_is_not_kept_beyond_what_goes_into_it() -> None:
    model = Net()
    cache, batch = FrozenMemo(model, Storage(1 << 16), say=list[str]().append), torch.randn(8, 8)

    def step(inputs: Tensor) -> Tensor:
        return model.head(model.mid(model.stem(inputs) + torch.randn(8, 8))).sum()

    for _ in range(5):
        torch.manual_seed(1)
        loss = cache.run(step, batch)
        torch.manual_seed(1)
        assert torch.equal(loss, step(batch))
    assert cache.hits > 0
