"""What is set in torch is read, and set again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_freeze.cache.conditions import conditions, settings, under, unusual


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_a_value_is_computed_under_what_was_set_at_the_call(context: object) -> None:
    with context():  # type: ignore[operator]
        then = conditions()
    assert then != conditions()
    with under(then):
        assert conditions() == then
    with under(conditions()):
        assert torch.is_grad_enabled()


def test_a_global_setting_is_noticed() -> None:
    before = settings()
    torch.use_deterministic_algorithms(True)
    try:
        assert settings() != before
    finally:
        torch.use_deterministic_algorithms(False)


def test_whatever_watches_torch_is_unusual() -> None:
    assert not unusual()
    with torch.device("cpu"):
        assert not unusual()
    for mode in (TorchFunctionMode(), TorchDispatchMode()):
        with mode:
            assert unusual()
    seen: list[bool] = []

    def look(one: Tensor) -> Tensor:
        seen.append(unusual())
        return one

    torch.vmap(look)(torch.ones(2))
    assert seen == [True]
