"""Which modules are opened and which stay whole: by structure and use, never by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_freeze.model.index import ModelIndex
from lightning_freeze.stages.blocks import units_of
from lightning_freeze.stages.units import Unit
from lightning_freeze.stages.usage import Usage, record_usage


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.down(self.up(inputs).relu())


def units(model: nn.Module, example: Tensor | None = None) -> list[Unit]:
    index = ModelIndex(model)
    return units_of(index, Usage() if example is None else record_usage(index, (example,)))


def labels(model: nn.Module, example: Tensor | None = None) -> list[str]:
    return [unit.labels[0] for unit in units(model, example)]


def test_a_container_of_blocks_is_opened_and_a_block_stays_whole() -> None:
    model = nn.ModuleDict({"stem": nn.Linear(4, 8), "body": nn.ModuleList([Block(), Block()]), "head": nn.Linear(8, 2)})
    found = units(model)
    assert [unit.labels[0] for unit in found] == ["stem", "body.0", "body.1", "head"]
    assert [unit.repeats for unit in found] == [False, True, True, False]
    assert [unit.weights for unit in found] == [1, 2, 2, 1]
    assert found[1].names == ("body.0.up.weight", "body.0.up.bias", "body.0.down.weight", "body.0.down.bias")
    assert found[1].size == sum(parameter.numel() for parameter in Block().parameters())


def test_a_block_without_another_of_its_class_does_not_repeat() -> None:
    class Neck(Block):
        pass

    model = nn.ModuleDict({"neck": Neck(4), "body": nn.ModuleList([Block(32), Block(32)]), "head": nn.Linear(8, 2)})
    found = {unit.labels[0]: unit.repeats for unit in units(model)}
    assert found == {"neck": False, "body.0": True, "body.1": True, "head": False}
    small = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]  # lists say nothing by their class
    model = nn.ModuleDict({"a": small[0], "body": nn.ModuleList([Block(32), Block(32)]), "b": small[1]})
    assert [unit.repeats for unit in units(model)] == [False, True, True, False]


def test_every_parameter_is_in_exactly_one_unit_a_tied_one_where_it_is_used_first() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body, self.words = nn.Linear(8, 20), nn.Sequential(Block(), Block()), nn.Embedding(20, 8)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.body(self.words(ids)))

    model = Language()
    found = units(model, torch.zeros(1, 3, dtype=torch.long))
    names = [name for unit in found for name in unit.names]
    assert sorted(names) == sorted(ModelIndex(model).parameters)
    (home,) = [unit.labels[0] for unit in found if "head.weight" in unit.names]
    assert home == "words"
    (home,) = [unit.labels[0] for unit in units(model) if "head.weight" in unit.names]
    assert home == "head"  # nothing was called: the order of registration


def test_a_small_list_of_layers_stays_whole_and_a_large_one_is_opened() -> None:
    small = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 2))
    model = nn.ModuleDict({"body": nn.ModuleList([Block(64), Block(64)]), "head": small})
    assert labels(model) == ["body.0", "body.1", "head"]
    deep = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    opened = units(nn.ModuleDict({"body": deep, "head": nn.Linear(8, 2)}))
    assert [unit.labels[0] for unit in opened] == ["body.0", "body.1", "body.2", "head"]
    assert [unit.listed for unit in opened] == [True, True, True, False]


def test_heads_side_by_side_stay_one_unit() -> None:
    heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in "abc"})
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8)), "heads": heads})
    assert labels(model) == ["body.0", "body.1", "heads"]


def test_a_small_list_of_depthwise_and_pointwise_pairs_is_no_stack_of_blocks() -> None:
    class Separable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise, self.pointwise = nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.Conv2d(4, 4, 1)

    def model(kind: type[nn.Module]) -> nn.Module:
        body = nn.ModuleList([Block(64), Block(64)])
        return nn.ModuleDict({"stem": nn.ModuleList([kind(), kind()]), "body": body})

    assert labels(model(Separable)) == ["stem", "body.0", "body.1"]
    assert labels(model(lambda: Block(4))) == ["stem.0", "stem.1", "body.0", "body.1"]  # type: ignore[arg-type]


def test_a_block_that_runs_on_its_own_output_is_not_opened() -> None:
    class Loop(nn.Module):
        def __init__(self, rounds: int) -> None:
            super().__init__()
            self.stem, self.layer, self.head = nn.Linear(4, 8), Block(), nn.Linear(8, 2)
            self.rounds = rounds

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.stem(inputs)
            for _ in range(self.rounds):
                hidden = self.layer(hidden)
            return self.head(hidden)

    example = torch.rand(2, 4)
    assert labels(Loop(3), example) == ["stem", "layer", "head"]
    assert [unit.repeats for unit in units(Loop(3), example)] == [False, True, False]
    assert labels(Loop(1), example) == ["stem", "layer.up", "layer.down", "head"]


def test_a_parameter_of_the_root_is_a_unit_and_a_token_has_no_weight() -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.matrix = nn.Parameter(torch.zeros(1, 4)), nn.Parameter(torch.rand(4, 4))
            self.head = nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head((inputs + self.token) @ self.matrix)

    found = {unit.labels[0]: unit for unit in units(Rooted(), torch.rand(2, 4))}
    assert list(found) == ["token", "matrix", "head"]
    assert (found["token"].weights, found["matrix"].weights, found["head"].width) == (0, 1, (4, 2))
