"""One walk over a model finds every parameter, module and buffer once, under names without wrapper prefixes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from lightning_freeze import PlanError
from lightning_freeze.model.index import (
    ModelIndex,
    buffers_of,
    check_initialized,
    is_compiled,
    tensor_bytes,
    tensors_of,
)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shared", self.norm.running_mean)


def test_parameters_and_buffers_are_those_of_torch_in_the_same_order() -> None:
    model = resnet18()
    index = ModelIndex(model)
    assert list(index.parameters.items()) == list(model.named_parameters())
    assert list(index.buffers.items()) == list(model.named_buffers())
    assert [index.spans[place].module for place, _ in index.places] == list(model.modules())


def test_a_tied_parameter_has_one_name_and_answers_to_all() -> None:
    index = ModelIndex(Tied())
    assert list(index.parameters) == ["embed.weight", "norm.weight", "norm.bias"]
    assert index.aliases["head.weight"] == "embed.weight"
    assert index.under("head") == ["embed.weight"]
    assert index.name_of(index.parameters["embed.weight"]) == "embed.weight"
    assert index.name_of(torch.zeros(1)) is None


def test_a_shared_buffer_is_found_once_and_as_it_is_now() -> None:
    model = Tied()
    index = ModelIndex(model)
    assert list(index.buffers) == ["shared", "norm.running_var", "norm.num_batches_tracked"]
    model.shared = torch.ones(4)
    assert index.buffers["shared"].sum() == 4


def test_a_span_covers_the_parameters_and_modules_below_it() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    index = ModelIndex(model)
    span = index.modules["0"]
    assert index.entries[span.start : span.stop] == ["0.0.weight", "0.0.bias"]
    assert [inner.name for inner in index.spans[1 : span.end]] == ["0", "0.0", "0.1"]


def test_what_is_directly_inside_a_module() -> None:
    index = ModelIndex(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    assert index.inside["0"] == ([], ["0.0", "0.1"])
    assert index.inside["0.0"] == (["0.0.weight", "0.0.bias"], [])


def test_members_are_all_names_with_the_modules_that_hold_them() -> None:
    model = Tied()
    model.scale = nn.Parameter(torch.ones(1))  # of the root
    index = ModelIndex(model)
    members = {member.name: member for member in index.members()}
    assert members.keys() == index.aliases.keys()
    assert (members["scale"].module, members["scale"].leaf, members["scale"].target) == (model, "scale", "scale")
    assert (members["head.weight"].module, members["head.weight"].target) == (model.head, "embed.weight")
    assert members["norm.bias"].tensor is model.norm.bias


def test_a_parametrized_tensor_lies_in_its_layer() -> None:
    index = ModelIndex(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))))
    owners = {member.name: (member.module, member.leaf) for member in index.members()}
    layer = index.modules["0"].module
    assert owners["0.parametrizations.weight.original0"] == (layer, "weight")
    assert owners["0.bias"] == (layer, "bias")


def test_a_wrapper_lends_its_name_and_a_child_called_module_keeps_it() -> None:
    assert list(ModelIndex(nn.DataParallel(nn.Linear(2, 2))).parameters) == ["weight", "bias"]
    assert list(ModelIndex(nn.ModuleDict({"module": nn.Linear(2, 2)})).parameters) == ["module.weight", "module.bias"]


def test_compiled_modules_are_known_and_keep_their_names() -> None:
    model = nn.Sequential(torch.compile(nn.Linear(2, 2)), nn.Linear(2, 2))
    index = ModelIndex(model)
    assert list(index.parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [is_compiled(child) for child in model] == [True, False]


def test_lazy_layers_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"(?s)A: 2 of the 2 parameters of Sequential have no shape yet \(0\.weight"):
        check_initialized(ModelIndex(nn.Sequential(nn.LazyLinear(3))), "A")


def test_tensors_and_buffers_by_name() -> None:
    index = ModelIndex(Tied())
    assert list(tensors_of(index, ["norm.running_var", "embed.weight", "nothing"])) == [
        "norm.running_var",
        "embed.weight",
    ]
    norm = next(place for place, span in index.places if span.name == "norm")
    assert buffers_of(index, [norm]) == ["norm.running_var", "norm.num_batches_tracked"]
    assert tensor_bytes([torch.zeros(3), torch.zeros(2, dtype=torch.float64)]) == 28
