"""Stages as someone who knows each network would cut it: blocks in order of use, the head first, nothing lost."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision
from helpers import SHARDS_ON_CPU
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_models import models
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.regnet import BlockParams

from lightning_freeze import PlanError, Stage, discover_stages, select
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.stages.discover import stages_of
from lightning_freeze.stages.usage import Usage, record_usage

CLASSIFIERS = torchvision.models.list_models(torchvision.models)


def lawful(model: nn.Module, stages: list[Stage]) -> list[list[str]]:
    """The names in each stage, checked: every parameter in exactly one stage, unique names fit for metrics."""
    chosen = [select(model, stage.patterns) for stage in stages]
    names = [name for stage in chosen for name in stage]
    assert len(names) == len(set(names)), "a parameter is in two stages"
    assert set(names) == set(ModelIndex(model).parameters), "a parameter is in no stage"
    assert len({stage.name for stage in stages}) == len(stages)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", stage.name) for stage in stages)
    return chosen


def stages_in(model: nn.Module, example_input: object = None, max_stages: int | None = None) -> dict[str, list[str]]:
    """Name -> patterns of the discovered stages, after `lawful`."""
    stages = discover_stages(model, example_input, max_stages)
    lawful(model, stages)
    return {stage.name: stage.patterns for stage in stages}


def sizes(model: nn.Module, stages: list[Stage]) -> list[int]:
    parameters = ModelIndex(model).parameters
    return [sum(parameters[name].numel() for name in select(model, stage.patterns)) for stage in stages]


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """Build a torchvision model without its numbers: a model of 600M parameters in a second."""
    compute = BlockParams.from_init_params.__func__

    def on_cpu(cls: type, *args: object, **kwargs: object) -> object:
        with torch.device("cpu"):  # RegNet reads its widths out of tensors
            return compute(cls, *args, **kwargs)

    def build(name: str) -> nn.Module:
        with torch.device("meta"):
            return torchvision.models.get_model(name, **({"init_weights": False} if name in INITIALIZED else {}))

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))
    return build


INITIALIZED = ("googlenet", "inception_v3")  # the only two that warn unless told


class TestTorchvision:
    @pytest.mark.parametrize("name", CLASSIFIERS)
    def test_every_classifier_of_the_registry_is_cut_along_its_blocks(
        self, name: str, on_meta: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usages: list[Usage] = []

        def record(*args: Any) -> Usage:
            usages.append(record_usage(*args))
            return usages[-1]

        monkeypatch.setattr("lightning_freeze.stages.discover.record_usage", record)
        model = on_meta(name)
        side = 299 if name == "inception_v3" else 224
        index = ModelIndex(model)

        stages = stages_of(index, torch.zeros(1, 3, side, side))

        chosen = lawful(model, stages)
        assert 6 <= len(stages) <= 40
        assert list(index.parameters)[-1] in chosen[0], "the classifier is not the first stage"
        assert next(iter(index.parameters)) in chosen[-1], "the stem is not the last stage"
        assert all(name.split(".")[0] == chosen[0][0].split(".")[0] for name in chosen[0]), "the head is not alone"
        assert_large_stages_are_single_layers(index, chosen)
        assert_in_order_of_use(usages[0].first, chosen)

    def test_a_resnet_is_its_stem_its_blocks_and_its_classifier(self) -> None:
        model = torchvision.models.resnet18(num_classes=3)

        found = stages_in(model, torch.rand(1, 3, 32, 32))

        blocks = {f"layer{k}.{block}": [f"layer{k}.{block}"] for k in (4, 3, 2, 1) for block in (1, 0)}
        assert found == {"fc": ["fc"], **blocks, "conv1": ["conv1", "bn1"]}
        assert list(found) == ["fc", *blocks, "conv1"]

    def test_tokens_and_positions_owned_by_a_parent_join_the_stem_and_the_last_norm_the_last_block(
        self, on_meta: Callable[[str], nn.Module]
    ) -> None:
        found = stages_in(on_meta("vit_b_16"), torch.zeros(1, 3, 224, 224))

        assert len(found) == 14
        assert found["conv_proj"] == ["class_token", "conv_proj", "encoder.pos_embedding"]
        assert found["encoder.layers.encoder_layer_11"] == ["encoder.layers.encoder_layer_11", "encoder.ln"]
        assert next(iter(found)) == "heads"

    def test_patch_merging_joins_the_block_that_it_feeds(self, on_meta: Callable[[str], nn.Module]) -> None:
        found = stages_in(on_meta("swin_t"), torch.zeros(1, 3, 224, 224))

        assert found["features.7.0"] == ["features.6", "features.7.0"]
        assert found["features.0"] == ["features.0"]
        assert len(found) == 14

    def test_the_convolution_after_the_last_block_joins_it(self, on_meta: Callable[[str], nn.Module]) -> None:
        found = stages_in(on_meta("mobilenet_v2"), torch.zeros(1, 3, 224, 224))

        assert list(found)[:2] == ["classifier", "features.17"]
        assert found["features.17"] == ["features.17", "features.18"]
        assert len(found) == 19

    def test_a_parent_of_many_blocks_is_expanded_though_it_is_no_list(
        self, on_meta: Callable[[str], nn.Module]
    ) -> None:
        found = stages_in(on_meta("regnet_y_400mf"), torch.zeros(1, 3, 224, 224))

        assert [name for name in found if "block4" in name] == [
            f"trunk_output.block4.block4-{k}" for k in range(5, -1, -1)
        ]

    def test_an_auxiliary_head_that_eval_leaves_out_stays_beside_its_neighbour(
        self, on_meta: Callable[[str], nn.Module]
    ) -> None:
        names = list(stages_in(on_meta("inception_v3"), torch.zeros(1, 3, 299, 299)))

        assert names[names.index("AuxLogits") + 1] == "Mixed_6e"
        assert names[names.index("AuxLogits") - 1] == "Mixed_7a"

    def test_a_detector_runs_from_its_predictors_down_to_the_stem(self) -> None:
        model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=3
        )

        names = list(stages_in(model, ([torch.rand(3, 64, 64)],)))

        assert names[0] == "roi_heads.box_predictor"
        assert names.index("rpn") < names.index("backbone.fpn") < names.index("backbone.body.12")
        assert names[-1] == "backbone.body.0"

    def test_a_segmenter_has_both_of_its_heads_in_the_first_stage(self, on_meta: Callable[[str], nn.Module]) -> None:
        with torch.device("meta"):
            model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)

        found = stages_in(model, torch.zeros(1, 3, 64, 64))

        assert next(iter(found.values())) == ["classifier", "aux_classifier"]
        assert list(found)[-1] == "backbone.conv1"


def assert_large_stages_are_single_layers(index: ModelIndex, chosen: list[list[str]]) -> None:
    """No stage holds half of the model, unless it is one layer, which cannot be cut."""
    total = sum(parameter.numel() for parameter in index.parameters.values())
    for names in chosen:
        matrices = [name for name in names if index.parameters[name].ndim > 1]
        assert len(matrices) == 1 or sum(index.parameters[name].numel() for name in names) < total / 2


def assert_in_order_of_use(first: dict[str, int], chosen: list[list[str]]) -> None:
    """What a stage uses first is used after what the stage below it uses first."""
    starts = [min(first[name] for name in names if name in first) for names in chosen if set(names) & set(first)]
    assert all(above > below for above, below in pairwise(starts))


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.down(self.up(self.norm(inputs)).relu())


class Backwards(nn.Module):
    """Everything is registered in the opposite of its order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.stem = nn.Linear(4, 8)
        self.position = nn.Parameter(torch.zeros(1, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs) + self.position
        for block in reversed(self.blocks):
            hidden = block(hidden)
        return self.head(hidden)


class Language(nn.Module):
    """Embedding and head share their weight; the head is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.words, self.places = nn.Linear(8, 20), nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.blocks = nn.Sequential(Block(), Block())
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.blocks(self.words(ids) + self.places(torch.arange(ids.shape[1]))))


class Functional(nn.Module):
    """No module but the root: what a hook cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle = nn.Parameter(torch.rand(2, 8)), nn.Parameter(torch.rand(8, 8))
        self.first, self.bias, self.shift = (
            nn.Parameter(torch.rand(8, 4)),
            nn.Parameter(torch.rand(8)),
            nn.Parameter(torch.rand(1, 4)),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.linear(inputs + self.shift, self.first, self.bias)
        return F.linear(hidden, self.middle) @ self.last.t()


class Tasks(nn.Module):
    """Two heads of different width on one trunk, and one that forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.age, self.kind, self.spare = nn.Linear(8, 1), nn.Linear(8, 5), nn.Linear(8, 2)
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(inputs)
        return self.age(hidden), self.kind(hidden)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 8, num_layers=2, bidirectional=True)
        self.tags = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tags(self.lstm(self.words(ids))[0])


class UNet(nn.Module):
    """Its blocks are written out as Sequentials, without a class."""

    def __init__(self) -> None:
        super().__init__()

        def twice(width: int, out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(width, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), nn.ReLU()
            )

        self.down1, self.down2, self.bottom = twice(3, 4), twice(4, 8), twice(8, 16)
        self.grow2, self.up2 = nn.ConvTranspose2d(16, 8, 2, 2), twice(16, 8)
        self.grow1, self.up1 = nn.ConvTranspose2d(8, 4, 2, 2), twice(8, 4)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        one = self.down1(inputs)
        two = self.down2(F.max_pool2d(one, 2))
        hidden = self.bottom(F.max_pool2d(two, 2))
        hidden = self.up2(torch.cat([two, self.grow2(hidden)], 1))
        return self.out(self.up1(torch.cat([one, self.grow1(hidden)], 1)))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.mix = nn.Linear(8, 4), nn.Linear(8, 8)
        self.experts = nn.ModuleList([Block() for _ in range(4)])

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = self.gate(inputs).argmax(-1)
        return self.mix(inputs) + sum(
            (chosen == k)[:, None] * expert(inputs) for k, expert in enumerate(self.experts) if k < 3
        )


class Loop(nn.Module):
    """One block, run three times on its own output, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(4, 8), nn.Sequential(Block()), nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for _ in range(3):
            hidden = self.layer(hidden)
        return self.head(hidden)


class TestOrder:
    def test_stages_follow_the_order_of_use_and_not_of_registration(self) -> None:
        found = stages_in(Backwards(), torch.rand(2, 4))

        assert list(found) == ["head", "blocks.0", "blocks.1", "blocks.2", "stem"]
        assert found["stem"] == ["position", "stem"]

    def test_without_an_input_stages_follow_the_order_of_registration(self) -> None:
        assert list(stages_in(Backwards()))[-1] == "head"

    def test_the_example_input_of_the_model_is_taken_when_none_is_given(self) -> None:
        model = Backwards()
        model.example_input_array = torch.rand(2, 4)

        assert list(stages_in(model)) == ["head", "blocks.0", "blocks.1", "blocks.2", "stem"]

    @pytest.mark.parametrize("given", [(torch.rand(2, 4),), [torch.rand(2, 4)], {"inputs": torch.rand(2, 4)}])
    def test_an_input_may_be_positional_or_keyword_arguments(self, given: object) -> None:
        assert next(iter(stages_in(Backwards(), given))) == "head"

    def test_an_input_is_moved_to_the_dtype_and_device_of_the_model(self) -> None:
        with torch.device("meta"):
            model = Backwards().to(torch.bfloat16)

        assert next(iter(stages_in(model, torch.rand(2, 4)))) == "head"

    def test_a_tied_parameter_belongs_to_the_stage_nearest_the_input(self) -> None:
        model = Language()

        stages = discover_stages(model, torch.zeros(2, 6, dtype=torch.long))

        assert lawful(model, stages)[-1] == ["head.weight", "places.weight"]
        assert "head.bias" in lawful(model, stages)[0]
        assert stages[-1].name == "words..places"

    def test_parameters_that_only_functions_use_are_ordered_too(self) -> None:
        assert stages_in(Functional(), torch.rand(2, 4)) == {
            "last": ["last"],
            "middle": ["middle"],
            "first": ["first", "bias", "shift"],
        }

    def test_heads_that_work_side_by_side_share_a_stage(self) -> None:
        found = stages_in(Tasks(), torch.rand(2, 4))

        assert found["age..kind"] == ["age", "kind"]
        assert list(found)[-2:] == ["trunk.2", "trunk.0"]

    def test_layers_of_one_width_that_feed_each_other_are_no_heads(self) -> None:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))

        assert list(stages_in(model, torch.rand(2, 4))) == ["2", "1", "0"]
        assert list(stages_in(model)) == ["2", "1", "0"]

    def test_a_list_of_heads_is_one_stage_also_when_forward_uses_one_of_them(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
                self.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in ("a", "b", "c")})

            def forward(self, inputs: Tensor) -> Tensor:
                return self.heads["b"](self.trunk(inputs))

        assert list(stages_in(Model(), torch.rand(2, 4))) == ["heads", "trunk.2", "trunk.0"]

    def test_what_forward_leaves_out_is_not_lost(self) -> None:
        class Embedder(nn.Module):  # its head is used in training_step
            def __init__(self) -> None:
                super().__init__()
                self.backbone, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 2)

            def forward(self, inputs: Tensor) -> Tensor:
                return self.backbone(inputs)

        assert list(stages_in(Embedder(), torch.rand(2, 8))) == ["head", "backbone.1", "backbone.0"]

    def test_a_recurrent_tagger_is_words_lstm_and_tags(self) -> None:
        assert list(stages_in(Tagger(), torch.zeros(2, 5, dtype=torch.long))) == ["tags", "lstm", "words"]

    def test_blocks_without_a_class_stay_whole_and_take_their_upsampling_along(self) -> None:
        found = stages_in(UNet(), torch.rand(1, 3, 16, 16))

        assert list(found) == ["out", "up1", "up2", "bottom", "down2", "down1"]
        assert found["up2"] == ["grow2", "up2"]

    def test_experts_are_parts_of_their_block(self) -> None:
        model = nn.Sequential(nn.Linear(4, 8), Experts(), Experts(), nn.Linear(8, 2))

        assert list(stages_in(model, torch.rand(9, 4))) == ["3", "2", "1", "0"]

    def test_a_block_that_runs_on_its_own_output_stays_whole(self) -> None:
        assert list(stages_in(Loop(), torch.rand(2, 4))) == ["head", "layer", "stem"]

    def test_two_networks_side_by_side_have_equal_places(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.nets = nn.ModuleList(
                    nn.Sequential(nn.Linear(4, 8), Block(), Block(), nn.Linear(8, 2)) for _ in "ab"
                )

            def forward(self, inputs: Tensor) -> Tensor:
                return self.nets[0](inputs) + self.nets[1](inputs)

        found = stages_in(Two(), torch.rand(2, 4))

        assert list(found.values()) == [[f"nets.0.{k}", f"nets.1.{k}"] for k in (3, 2, 1, 0)]

    def test_a_wrapping_module_adds_its_name_and_nothing_else(self) -> None:
        class Wrapper(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = Backwards()

            def forward(self, inputs: Tensor) -> Tensor:
                return self.model(inputs)

        plain = stages_in(Backwards(), torch.rand(2, 4))
        assert list(stages_in(Wrapper(), torch.rand(2, 4))) == [f"model.{name}" for name in plain]

    def test_a_small_new_head_of_several_layers_is_one_stage(self) -> None:
        model = torchvision.models.resnet18()
        model.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 3))

        assert list(stages_in(model, torch.rand(1, 3, 32, 32)))[:2] == ["fc", "layer4.1"]


class TestShapes:
    def test_a_model_without_parameters_has_no_stages(self) -> None:
        assert discover_stages(nn.ReLU(), torch.rand(2)) == []

    @pytest.mark.parametrize("example_input", [None, torch.rand(2, 3)])
    def test_a_single_layer_is_one_stage(self, example_input: Tensor | None) -> None:
        assert stages_in(nn.Linear(3, 2), example_input) == {"Linear": ["*"]}

    def test_a_model_of_norms_only_is_one_stage(self) -> None:
        assert stages_in(nn.BatchNorm1d(3), torch.rand(2, 3)) == {"BatchNorm1d": ["*"]}

    def test_a_norm_before_everything_joins_what_follows(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.Linear(8, 2))

        assert stages_in(model, torch.rand(2, 4)) == {"2": ["2"], "1": ["0", "1"]}

    def test_a_shared_module_is_in_one_stage(self) -> None:
        shared = Block()
        model = nn.Sequential(nn.Linear(8, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 2))

        assert list(stages_in(model, torch.rand(2, 8))) == ["4", "1", "0"]

    def test_names_that_read_as_patterns_are_selected_exactly(self) -> None:
        names = ["a*", "ab", "!c", "re:d", "e[0]", "e0", "*"]
        model = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})

        chosen = lawful(model, discover_stages(model))

        assert [stage[0] for stage in chosen] == [f"{name}.weight" for name in reversed(names)]

    def test_stage_names_hold_only_what_metric_names_may(self) -> None:
        model = nn.Sequential()
        for name in ("a/b", "a b", "a+b"):
            model.add_module(name, nn.Linear(2, 2))

        assert [stage.name for stage in discover_stages(model)] == ["a-b__", "a-b_", "a-b"]

    def test_a_model_that_is_not_built_yet_is_refused(self) -> None:
        with pytest.raises(
            PlanError, match=r"2 of the 4 parameters of Sequential have no shape yet \(1.weight, 1.bias\)"
        ):
            discover_stages(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)), torch.rand(1, 2))


class TestMaxStages:
    @pytest.mark.parametrize("most", [1, 2, 3, 5, 9])
    def test_neighbours_are_merged_to_at_most_so_many(self, most: int) -> None:
        model = torchvision.models.resnet18()

        stages = discover_stages(model, torch.rand(1, 3, 32, 32), max_stages=most)

        lawful(model, stages)
        assert len(stages) == most

    def test_merging_balances_parameter_counts(self) -> None:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(13)))

        counts = sizes(model, discover_stages(model, torch.rand(1, 4), max_stages=5))

        assert counts == [20, 60, 60, 60, 60]

    def test_the_head_stays_alone_from_three_stages_on(self) -> None:
        model = torchvision.models.resnet18(num_classes=2)
        found = {most: discover_stages(model, torch.rand(1, 3, 32, 32), most)[0].patterns for most in (2, 3)}

        assert found == {2: ["layer4.1", "fc"], 3: ["fc"]}

    def test_a_merged_stage_is_named_after_its_first_and_last_module(self) -> None:
        model = torchvision.models.resnet18()

        assert [stage.name for stage in discover_stages(model, torch.rand(1, 3, 32, 32), 4)][-1] == "conv1..layer3.1"

    def test_there_are_never_more_than_forty(self) -> None:
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))

        assert len(discover_stages(model, torch.rand(1, 2))) == 40
        assert len(discover_stages(model, torch.rand(1, 2), max_stages=45)) == 40

    @pytest.mark.parametrize("most", [0, -1, True, 2.5, "3"])
    def test_a_limit_that_is_no_count_is_refused(self, most: object) -> None:
        with pytest.raises(PlanError, match="max_stages must be a whole number of at least 1"):
            discover_stages(nn.Linear(2, 2), max_stages=most)


class Restless(nn.Module):
    """Its forward writes buffers also in eval mode, draws numbers and changes its input; it may raise at the end."""

    def __init__(self, *, raises: bool = False) -> None:
        super().__init__()
        self.norm, self.drop, self.out = nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("replaced", torch.full((2,), torch.nan))
        self.register_buffer("expanded", torch.zeros(1).expand(3))
        self.raises = raises

    def train(self, mode: bool = True) -> Restless:
        raise AssertionError("a user's train may do anything")

    def forward(self, inputs: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.count += 1
        self.norm.running_mean.fill_(7)
        self.replaced = torch.rand(2)
        self.register_buffer("extra", torch.rand(1))
        inputs.add_(torch.rand(1) + random.random())
        if self.raises:
            raise RuntimeError("no luck\nsecond line")
        return self.out(self.drop(self.norm(inputs)))


def state_of(model: nn.Module) -> tuple[object, ...]:
    bits = {name: buffer.clone().view(torch.uint8).tolist() for name, buffer in model.named_buffers() if buffer.ndim}
    return bits, [module.training for module in model.modules()], torch.get_rng_state().tolist(), random.getstate()


class TestNoTrace:
    @pytest.mark.parametrize("raises", [False, True])
    def test_modes_buffers_inputs_and_random_state_are_restored(self, raises: bool) -> None:
        model, example_input = Restless(raises=raises), torch.ones(3, 4)
        model.norm.eval()
        before, buffers = state_of(model), dict(model.named_buffers())

        if raises:
            with pytest.raises(PlanError):
                discover_stages(model, example_input)
        else:
            discover_stages(model, example_input)

        assert state_of(model) == before
        assert model.count == 0
        assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
        assert torch.equal(example_input, torch.ones(3, 4))
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())

    def test_hooks_of_the_recording_are_gone(self) -> None:
        model = Backwards()

        discover_stages(model, torch.rand(2, 4))
        with pytest.raises(PlanError):
            discover_stages(model, torch.rand(2, 5))

        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())

    @pytest.mark.gpu
    def test_random_state_of_the_gpu_is_restored(self) -> None:
        model = Restless().cuda()
        before = torch.cuda.get_rng_state().tolist()

        discover_stages(model, torch.ones(3, 4))

        assert torch.cuda.get_rng_state().tolist() == before

    def test_a_failing_forward_says_what_failed_and_what_to_do(self) -> None:
        with pytest.raises(PlanError, match=r"forward of Restless.* raised RuntimeError: no luck\n") as caught:
            discover_stages(Restless(raises=True), torch.ones(3, 4))

        assert "(3, 4) torch.float32, from example_input" in str(caught.value)
        assert "Pass an example_input that forward accepts" in str(caught.value)
        assert isinstance(caught.value.__cause__, RuntimeError)

    def test_a_failing_forward_on_the_models_own_input_names_the_attribute(self) -> None:
        model = Restless(raises=True)
        model.example_input_array = torch.ones(3, 4)

        with pytest.raises(PlanError, match=r"from model\.example_input_array"):
            discover_stages(model)


class TestWrappers:
    def test_a_compiled_model_is_not_compiled_for_it(self) -> None:
        compiled: list[object] = []

        def backend(graph: object, inputs: object) -> object:
            compiled.append(graph)
            return graph

        model = torch.compile(Backwards(), backend=backend)
        model.blocks[1] = torch.compile(model.blocks[1], backend=backend)

        assert list(stages_in(model, torch.rand(2, 4))) == ["head", "blocks.0", "blocks.1", "blocks.2", "stem"]
        assert not compiled

    @pytest.mark.skipif(not SHARDS_ON_CPU, reason="this torch shards on a GPU only")
    def test_ddp_and_sharded_models_are_cut_like_the_plain_one(self, gloo: None) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model, plain = torchvision.models.resnet18(), torchvision.models.resnet18()
        expected = stages_in(plain, torch.rand(1, 3, 32, 32))
        mesh = init_device_mesh("cpu", (1,))
        for layer in (model.layer1, model.layer3[1]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        before = {name: id(parameter) for name, parameter in model.named_parameters()}

        assert stages_in(nn.parallel.DistributedDataParallel(plain), torch.rand(1, 3, 32, 32)) == expected
        assert stages_in(model, torch.rand(1, 3, 32, 32)) == expected
        assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


class TestLaws:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(models(), st.integers(1, 6))
    def test_every_parameter_is_in_exactly_one_of_at_most_so_many_stages(self, model: nn.Module, most: int) -> None:
        stages = discover_stages(model, max_stages=most)

        lawful(model, stages)
        assert len(stages) <= most
