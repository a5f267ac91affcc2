"""Patterns select what they say: in order, once, and by whichever name a parameter has."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_freeze import PatternError, Stage, fingerprint, select
from lightning_freeze.model.index import ModelIndex, tensor_bytes
from lightning_freeze.model.patterns import select_names

few = settings(max_examples=30, deadline=None)
RESNET = torchvision.models.resnet18(num_classes=3)
NAMES = [name for name, _ in RESNET.named_parameters()]
TERMS = [
    "kind:norm",
    "kind:bias",
    "type:BatchNorm2d",
    "type:_NormBase",
    "type:Linear",
    "layer3",
    "*.weight",
    r"re:.*\.[01]\..*",
]
PATTERNS = [
    *TERMS,
    "*",
    "layer1",
    "layer2.0",
    "layer?.*.bn*",
    "fc",
    "fc.weight",
    r"re:layer[34]\..*",
    "*.bias",
    "conv1",
]


def under(*modules: str) -> list[str]:
    return [name for name in NAMES if name.startswith(tuple(f"{module}." for module in modules))]


class TestPatterns:
    def test_a_module_stands_for_all_parameters_under_it(self) -> None:
        assert select(RESNET, "layer4") == under("layer4")
        assert len(under("layer4")) == 15

    def test_a_name_that_begins_like_another_is_another(self) -> None:
        model = nn.ModuleDict({"a": nn.Linear(1, 1), "ab": nn.Linear(1, 1)})

        assert select(model, "a") == ["a.weight", "a.bias"]

    def test_a_parameter_stands_for_itself(self) -> None:
        assert select(RESNET, "fc.weight") == ["fc.weight"]

    def test_the_star_of_a_glob_crosses_dots(self) -> None:
        assert select(RESNET, "layer?.*.bn*") == [name for name in NAMES if re.match(r"layer.\..*\.bn", name)]

    def test_a_glob_that_matches_a_module_takes_all_under_it(self) -> None:
        assert select(RESNET, "layer[34]") == under("layer3", "layer4")

    def test_a_regular_expression_must_match_the_whole_name_of_a_parameter(self) -> None:
        assert select(RESNET, r"re:layer[34]\..*") == under("layer3", "layer4")
        with pytest.raises(PatternError, match="matches none of the 62 parameters of ResNet"):
            select(RESNET, "re:layer4")

    def test_an_exclamation_mark_takes_away_from_what_came_before_it_only(self) -> None:
        assert select(RESNET, ["layer4", "!layer4.1"]) == under("layer4.0")
        assert select(RESNET, ["layer4", "!layer4.1", "layer4.1.bn2"]) == under("layer4.0", "layer4.1.bn2")

    def test_one_may_be_left_with_nothing(self) -> None:
        assert select(RESNET, ["fc", "!fc"]) == []

    def test_patterns_may_be_any_sequence_of_strings(self) -> None:
        assert select(RESNET, ("fc", "conv1")) == ["conv1.weight", "fc.weight", "fc.bias"]


class TestLaws:
    def test_the_star_is_everything_in_the_order_of_named_parameters(self) -> None:
        assert select(RESNET, "*") == NAMES

    @few
    @given(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4))
    def test_a_selection_is_ordered_and_holds_each_parameter_once(self, patterns: list[str]) -> None:
        found = select(RESNET, patterns)

        assert found == [name for name in NAMES if name in set(found)]

    @few
    @given(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4))
    def test_patterns_without_a_mark_add_up(self, patterns: list[str]) -> None:
        assert set(select(RESNET, patterns)) == {name for pattern in patterns for name in select(RESNET, pattern)}

    @few
    @given(st.sampled_from(PATTERNS), st.sampled_from(PATTERNS))
    def test_a_mark_takes_away_exactly_what_its_pattern_selects(self, pattern: str, away: str) -> None:
        gone = set(select(RESNET, away))

        assert select(RESNET, [pattern, f"!{away}"]) == [name for name in select(RESNET, pattern) if name not in gone]

    @few
    @given(st.sampled_from(NAMES))
    def test_every_name_selects_its_parameter(self, name: str) -> None:
        assert select(RESNET, name) == [name] == select(RESNET, f"re:{re.escape(name)}")

    @few
    @given(st.sampled_from(TERMS), st.sampled_from(TERMS), st.sampled_from([" & ", " &", "& ", "  &  "]))
    def test_both_sides_of_an_ampersand_have_to_select(self, left: str, right: str, ampersand: str) -> None:
        both = [name for name in select(RESNET, left) if name in select(RESNET, right)]
        assume(both and (" & " in ampersand or not left.startswith("re:")))

        assert select(RESNET, left + ampersand + right) == both == select(RESNET, f"{right} & {left}")

    @few
    @given(st.lists(st.sampled_from(TERMS), min_size=1, max_size=3), st.sampled_from(PATTERNS))
    def test_an_ampersand_binds_closer_than_a_mark(self, terms: list[str], first: str) -> None:
        kept = [set(select(RESNET, term)) for term in terms]
        assume(set.intersection(*kept))
        left = [name for name in select(RESNET, first) if name not in set.intersection(*kept)]

        assert select(RESNET, [first, f"!{' & '.join(terms)}"]) == left

    @few
    @given(st.sampled_from(TERMS), st.sampled_from(TERMS))
    def test_a_mark_on_the_right_of_an_ampersand_splits_what_is_on_its_left(self, left: str, right: str) -> None:
        mine, other = set(select(RESNET, left)), set(select(RESNET, right))
        assume(mine - other and mine & other)

        assert set(select(RESNET, f"{left} & !{right}")) == mine - other
        assert set(select(RESNET, [f"{left} & !{right}", f"{left} & {right}"])) == mine

    def test_kinds_of_resnet_are_complete(self) -> None:
        norms = select(RESNET, "kind:norm")

        assert len(norms) == 40 == 2 * sum(isinstance(module, nn.BatchNorm2d) for module in RESNET.modules())
        assert norms == select(RESNET, "type:BatchNorm2d") == select(RESNET, "type:_NormBase")
        assert (
            select(RESNET, ["*", "!type:Conv2d", "!kind:norm"])
            == ["fc.weight", "fc.bias"]
            == select(RESNET, "type:Linear")
        )


class TestKinds:
    def test_a_parametrized_tensor_lies_in_its_layer(self) -> None:
        model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 1)), nn.Linear(2, 2))
        weights = ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]

        assert select(model, "type:Conv1d") == ["0.bias", *weights]
        assert select(model, ["type:Conv1d & !kind:bias"]) == weights

    def test_an_expression_may_hold_an_ampersand_and_stand_beside_one(self) -> None:
        model = nn.ModuleDict({"a&b": nn.Linear(1, 1), "c": nn.Linear(1, 1)})

        assert select(model, "re:a&b.*") == ["a&b.weight", "a&b.bias"] == select(model, "a&b")
        assert select(model, "re:.*a&b.* & kind:bias") == ["a&b.bias"]

    def test_what_is_taken_away_by_nature_may_be_absent(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2))

        assert select(model, "* & !kind:norm & !type:_BatchNorm") == ["0.weight", "0.bias"]
        with pytest.raises(PatternError, match=r"'type:BatchNrm' matches none"):
            select(model, "* & !type:BatchNrm")

    def test_a_tied_parameter_is_of_every_kind_that_its_places_make_it(self) -> None:
        model = nn.ModuleDict({"head": nn.Linear(2, 4, bias=False), "words": nn.Embedding(4, 2)})
        model["words"].weight = model["head"].weight

        assert select(model, "kind:embedding") == select(model, "type:Linear") == ["head.weight"]

    def test_fingerprints_and_stages_take_them_too(self) -> None:
        assert list(fingerprint(RESNET, "layer1.0.bn1 & kind:norm")) == [
            f"layer1.0.bn1.{leaf}" for leaf in ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
        ]
        assert Stage("norms", "kind:norm").patterns == ["kind:norm"]


class TestTies:
    @pytest.fixture
    def tied(self) -> nn.ModuleDict:
        model = nn.ModuleDict({"words": nn.Embedding(4, 2), "body": nn.Linear(2, 2), "head": nn.Linear(2, 4)})
        model["head"].weight = model["words"].weight
        model["again"] = model["body"]
        return model

    @pytest.mark.parametrize("pattern", ["words", "words.weight", "head.weight", "h*.weight", r"re:head\.weight"])
    def test_a_tied_parameter_has_its_first_name_and_answers_to_all(self, tied: nn.ModuleDict, pattern: str) -> None:
        assert select(tied, pattern) == ["words.weight"]

    def test_it_is_there_once(self, tied: nn.ModuleDict) -> None:
        assert select(tied, "*") == [name for name, _ in tied.named_parameters()]
        assert select(tied, ["head", "!words"]) == ["head.bias"]

    def test_a_shared_module_answers_to_both_names(self, tied: nn.ModuleDict) -> None:
        assert select(tied, "again") == select(tied, "body") == ["body.weight", "body.bias"]

    def test_the_index_knows_a_parameter_by_identity(self, tied: nn.ModuleDict) -> None:
        index = ModelIndex(tied)

        assert index.name_of(tied["head"].weight) == "words.weight"
        assert index.name_of(nn.Parameter(tied["body"].bias.detach().clone())) is None


class TestWrappers:
    def test_torch_compile_is_no_part_of_a_name(self) -> None:
        model = nn.Sequential(nn.Linear(1, 1), torch.compile(nn.Sequential(nn.Linear(1, 1))))

        assert select(torch.compile(model), "1.0") == ["1.0.weight", "1.0.bias"]

    def test_ddp_is_no_part_of_a_name(self, gloo: None) -> None:
        model = nn.parallel.DistributedDataParallel(nn.ModuleDict({"module": nn.Linear(1, 1), "b": nn.Linear(1, 1)}))

        assert select(model, "module") == ["module.weight", "module.bias"]
        assert select(model, "*")[-1] == "b.bias"

    def test_data_parallel_is_no_part_of_a_name(self) -> None:
        assert select(nn.DataParallel(nn.Linear(1, 1)), "*") == ["weight", "bias"]

    def test_checkpointing_is_no_part_of_a_name(self) -> None:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        model = nn.Sequential(checkpoint_wrapper(nn.Linear(1, 1)))

        assert select(model, "0") == ["0.weight", "0.bias"]

    def test_sharding_is_no_part_of_a_name(self, gloo: None) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = nn.Sequential(nn.Linear(1, 1))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))

        assert select(model, "0") == ["0.weight", "0.bias"]

    def test_a_child_that_is_merely_called_module_keeps_its_name(self) -> None:
        assert select(nn.ModuleDict({"module": nn.Linear(1, 1)}), "module") == ["module.weight", "module.bias"]


class TestErrors:
    def test_an_unknown_kind_lists_the_kinds(self) -> None:
        with pytest.raises(PatternError, match=r"select: pattern '!kind:normm'.*\n  Kinds: bias, embedding, norm"):
            select(RESNET, ["*", "!kind:normm"])
        with pytest.raises(PatternError, match=r"stage 'late': pattern 'kind:x'.*'x', which does not exist"):
            Stage("late", "kind:x")

    @pytest.mark.parametrize(
        "pattern", ["layer4 &", "& kind:norm", "layer4 & & kind:norm", "&", "!layer4 & !", "layer4&"]
    )
    def test_an_ampersand_needs_both_sides(self, pattern: str) -> None:
        with pytest.raises(PatternError, match=r"nothing on one side of '&'.*\n.*'model\.layer4 & kind:norm'"):
            select(RESNET, ["*", pattern])

    def test_a_pattern_that_matches_nothing_names_owner_count_and_closest(self) -> None:
        with pytest.raises(PatternError) as caught:
            select_names(ModelIndex(RESNET), "layer5", owner="GradualUnfreeze stage 'late'")

        assert str(caught.value).startswith(
            "GradualUnfreeze stage 'late': pattern 'layer5' matches none of the 62 parameters of ResNet."
        )
        assert re.search(r"Closest: .*layer[1-4]", str(caught.value))

    def test_a_mark_on_a_pattern_that_matches_nothing_is_an_error_too(self) -> None:
        with pytest.raises(PatternError, match="pattern '!layer5' matches none"):
            select(RESNET, ["*", "!layer5"])

    def test_a_list_cannot_begin_with_a_mark(self) -> None:
        with pytest.raises(PatternError, match=r"takes away from the patterns before it.*\n.*\['\*', '!fc'\]"):
            select(RESNET, "!fc")

    def test_what_is_no_regular_expression_says_why(self) -> None:
        with pytest.raises(PatternError, match=r"pattern 're:\(' is not a valid regular expression: missing \)"):
            select(RESNET, "re:(")

    @pytest.mark.parametrize("patterns", [None, 3, ["fc", 3]])
    def test_patterns_that_are_no_strings_are_refused(self, patterns: object) -> None:
        with pytest.raises(PatternError, match="must be a string or a list of strings"):
            select(RESNET, patterns)

    def test_a_model_without_parameters_has_nothing_to_select(self) -> None:
        with pytest.raises(PatternError, match="none of the 0 parameters of ReLU"):
            select(nn.ReLU(), "*")


class TestIndex:
    def test_buffers_have_names_as_in_named_buffers(self) -> None:
        assert list(ModelIndex(RESNET).buffers) == [name for name, _ in RESNET.named_buffers()]

    def test_a_buffer_that_was_replaced_is_the_new_one(self) -> None:
        model = nn.BatchNorm1d(2)
        index = ModelIndex(model)

        model.running_mean = torch.ones(2)

        assert index.buffers["running_mean"] is model.running_mean

    def test_what_is_inside_a_module_is_known_without_another_walk(self) -> None:
        inside = ModelIndex(RESNET).inside

        assert inside["fc"] == (["fc.weight", "fc.bias"], [])
        assert inside["layer1"] == ([], ["layer1.0", "layer1.1"])
        assert inside[""][1][0] == "conv1"

    def test_bytes_of_tensors_add_up(self) -> None:
        assert tensor_bytes([torch.zeros(3), torch.zeros(2, dtype=torch.float16)]) == 16
