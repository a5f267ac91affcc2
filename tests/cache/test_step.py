"""A step with the cache does what it does without: bits, side effects, random numbers, whatever it is."""

from __future__ import annotations

import odd_steps
import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.cache.memo import FrozenMemo
from lightning_freeze.cache.row_store import Storage
from lightning_freeze.errors import FreezeError


def exact(seed: int, **options: bool) -> int:
    plain, _ = odd_steps.run(seed, memo=False)
    cached, hits = odd_steps.run(seed, memo=True, **options)
    assert not odd_steps.differences(plain, cached)
    return hits


@pytest.mark.filterwarnings("ignore")
def test_random_graphs_with_odd_steps_are_exact() -> None:
    served = [exact(seed) > 0 for seed in range(24)]
    assert sum(served) > len(served) / 2


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(0, 600, 50))
def test_many_random_graphs_with_odd_steps_are_exact(first: int) -> None:
    served = [exact(seed) > 0 for seed in range(first, first + 50)]
    assert sum(served) > len(served) / 2


class Net(nn.Module):
    """frozen -> late -> head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.late = nn.Linear(width, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 2)
        self.frozen.requires_grad_(False)
        self.late.requires_grad_(False)


def memo(model: nn.Module) -> FrozenMemo:
    return FrozenMemo(model, Storage(1 << 22), say=lambda text: None, warn=lambda text: None)


def test_a_compiled_function_gets_values() -> None:
    model = Net()
    cache, batch = memo(model), torch.randn(8, 8)
    twice = torch.compile(lambda features: features * 2 + 1, backend="eager")

    def step(inputs: Tensor) -> Tensor:
        return model.head(twice(model.frozen(inputs))).sum()

    losses = [cache.run(step, batch).item() for _ in range(6)]
    assert cache.hits >= 16
    assert losses == [step(batch).item()] * 6


def test_what_a_step_returns_or_keeps_is_a_plain_tensor_with_values() -> None:
    model = Net()
    cache, batch = memo(model), torch.randn(8, 8)
    kept: list[Tensor] = []

    def step(inputs: Tensor) -> dict[str, Tensor]:
        features = model.frozen(inputs)
        kept.append(features)
        return {"loss": model.head(model.late(features)).sum(), "late": model.late(features)}

    for _ in range(6):
        result = cache.run(step, batch)
        assert type(result["late"]) is Tensor
        assert type(kept[-1]) is Tensor
        assert torch.equal(result["late"], model.late(model.frozen(batch)))
        assert torch.equal(kept[-1], model.frozen(batch))
    assert cache.hits > 0


def test_rows_that_were_first_kept_in_inference_mode_are_joined_by_others() -> None:
    model = Net()
    cache = memo(model)

    def step(inputs: Tensor, inference: bool) -> Tensor:
        with torch.inference_mode(inference):
            features = model.late(model.frozen(inputs)).sum().item()
        return model.head.weight.sum() * features

    for turn in range(8):
        batch = torch.randn(8, 8, generator=torch.Generator().manual_seed(turn // 2))
        assert cache.run(step, batch, turn < 3).item() == step(batch, turn < 3).item()


def test_a_view_and_what_it_is_of_share_memory_though_only_the_view_was_stored() -> None:
    model = Net()
    cache, batch = memo(model), torch.randn(8, 8)
    odd = False

    def step(inputs: Tensor) -> Tensor:
        features = model.late(model.frozen(inputs))
        first = features[:, :8]
        out = first @ model.head.weight[:, :8].t()
        if odd:
            first.mul_(3)
            out = out + features @ model.head.weight.t()
        return out.sum()

    for turn in range(9):
        odd = turn in (5, 7)
        assert cache.run(step, batch).item() == step(batch).item(), turn
    assert cache.hits > 0


def test_a_value_that_can_no_longer_be_computed_is_refused() -> None:
    model = Net(1 << 14)
    cache, batch = memo(model), torch.randn(8, 1 << 14)
    odd = False

    def step(inputs: Tensor) -> Tensor:
        first = model.frozen(inputs)
        out = model.head(model.late(first)).sum()
        if odd:
            inputs.add_(1)
            out = out + first.sum()
        return out

    for _ in range(5):
        cache.run(step, batch)
    assert cache.hits > 0
    odd = True
    with pytest.raises(FreezeError, match="writes into a tensor that went into the frozen part"):
        cache.run(step, batch)
