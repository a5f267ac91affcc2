"""One forward shows when each parameter is first used, as what, and what had gone into its input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_freeze import PlanError
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.stages.usage import FROM_INPUT, Usage, UsageMode, fill_from_calls, record_usage


class Small(nn.Module):
    """Registered in the opposite of the order of use; a position is added, a norm scales, a layer is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm, self.stem, self.spare = nn.Linear(4, 2), nn.LayerNorm(4), nn.Linear(3, 4), nn.Linear(1, 1)
        self.position = nn.Parameter(torch.zeros(1, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(inputs) + self.position))


def usage_of(model: nn.Module, *inputs: Tensor) -> tuple[ModelIndex, Usage]:
    index = ModelIndex(model)
    return index, record_usage(index, inputs)


def order(usage: Usage) -> list[str]:
    return sorted(usage.first, key=lambda name: usage.first[name])


def bits(index: ModelIndex, mask: int) -> set[str]:
    return {name for place, name in enumerate(index.parameters, start=1) if mask >> place & 1}


def test_parameters_are_in_the_order_of_their_first_use() -> None:
    _, usage = usage_of(Small(), torch.rand(2, 3))
    weights = [name for name in order(usage) if not name.endswith("bias")]
    assert weights == ["stem.weight", "position", "norm.weight", "head.weight"]


def test_weights_tokens_and_the_rest_are_told_apart() -> None:
    _, usage = usage_of(Small(), torch.rand(2, 3))
    assert {"stem.weight", "head.weight"} <= usage.weights
    assert usage.tokens == {"position"}
    assert "norm.weight" not in usage.weights | usage.tokens


def test_what_went_into_the_input_is_known_and_what_is_added_stands_beside_it() -> None:
    index, usage = usage_of(Small(), torch.rand(2, 3))
    assert usage.inputs["stem.weight"] == usage.inputs["position"] == FROM_INPUT
    assert bits(index, usage.inputs["norm.weight"]) == {"stem.weight", "stem.bias", "position"}
    assert bits(index, usage.inputs["head.weight"]) >= {"stem.weight", "norm.weight", "norm.bias"}
    assert all(mask & FROM_INPUT for mask in usage.inputs.values())


def test_only_what_is_called_has_a_time_and_the_clock_is_shared() -> None:
    model = Small()
    _, usage = usage_of(model, torch.rand(2, 3))
    assert id(model.spare) not in usage.calls
    assert usage.calls[id(model)] < usage.calls[id(model.stem)] < usage.first["stem.weight"]
    assert usage.first["stem.weight"] < usage.calls[id(model.norm)] < usage.calls[id(model.head)]


class Twice(nn.Module):
    def __init__(self, chained: bool) -> None:
        super().__init__()
        self.layer, self.chained = nn.Linear(3, 3), chained

    def forward(self, inputs: Tensor) -> Tensor:
        first = self.layer(inputs)
        return self.layer(first) if self.chained else first + self.layer(inputs * 2)


@pytest.mark.parametrize("chained", [True, False])
def test_a_layer_is_looped_when_it_runs_on_its_own_output(chained: bool) -> None:
    model = Twice(chained)
    _, usage = usage_of(model, torch.rand(2, 3))
    assert usage.looped == ({id(model.layer)} if chained else set())


def test_sizes_dtypes_and_new_tensors_are_no_use() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shape_only, self.scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))

        def forward(self, inputs: Tensor) -> Tensor:
            noise = torch.zeros_like(self.shape_only) + self.shape_only.new_zeros(self.shape_only.shape)
            return inputs * self.scale + noise

    _, usage = usage_of(Looks(), torch.rand(2, 3))
    assert set(usage.first) == {"scale"}


def test_what_is_written_through_a_view_marks_the_whole() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            batch = torch.zeros(4, 3)
            batch[:2].copy_(self.stem(inputs))
            return self.head(batch)

    index, usage = usage_of(Padded(), torch.rand(2, 3))
    assert bits(index, usage.inputs["head.weight"]) == {"stem.weight", "stem.bias"}


def test_a_module_that_computes_out_of_sight_is_bridged() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
            return inputs.detach() * weight.detach()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            return gradients[0], gradients[0]

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, inputs: Tensor) -> Tensor:
            return Double.apply(inputs, self.weight)

    index, usage = usage_of(nn.Sequential(nn.Linear(3, 3), Hidden(), nn.Linear(3, 2)), torch.rand(2, 3))
    depth = {name: node for node, names in usage.flow.uses.items() for name in names}
    assert set(index.parameters) == set(depth)


def test_with_gradient_leaves_out_what_is_done_without_grad_mode() -> None:
    model, inputs = nn.ModuleDict({"online": nn.Linear(3, 3), "target": nn.Linear(3, 3)}), torch.rand(2, 3)
    index = ModelIndex(model)
    watch = UsageMode(index, inputs, with_gradient=True)
    with watch:
        with torch.no_grad():
            F.linear(inputs, model["target"].weight)
        F.linear(inputs, model["online"].weight)
    assert set(watch.usage.first) == {"online.weight"}


def test_a_called_module_without_a_seen_parameter_counts_by_its_call() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    usage = Usage(first={"0.weight": 1}, calls={id(model[0]): 0, id(model[1]): 5})
    fill_from_calls(ModelIndex(model), usage)
    assert usage.first == {"0.weight": 1, "1.weight": 5, "1.bias": 5}


def test_a_forward_that_fails_names_its_input_and_leaves_no_hook() -> None:
    model = Small()
    with pytest.raises(
        PlanError, match=r"the forward of Small, .* raised RuntimeError: (?s:.)*\(2, 5\) torch\.float32"
    ):
        usage_of(model, torch.rand(2, 5))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
