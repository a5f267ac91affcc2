"""Units become levels, and levels stages: who joins whom, and where many are merged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lightning_freeze.stages.units import Level, Unit, balance, join, merge, union

PLAIN = Unit(("?",), ("?",), 1, 0, 0, 0, 0, 1, None)


def level(name: str, size: int = 1, weights: int = 1, *, block: bool = False) -> Level:
    """One unit: a layer, a norm (`weights=0`), or a block that repeats."""
    count = 2 if block else weights
    return Level.of([replace(PLAIN, labels=(name,), names=(name,), size=size, weights=count, repeats=block)])


def names(levels: list[Level]) -> list[str]:
    return ["+".join(one.names) for one in levels]


class TestApart:
    def test_branches_share_an_origin_and_do_not_feed_each_other(self) -> None:
        left, right = (replace(PLAIN, bits=bits, inputs=0b1001) for bits in (0b10, 0b100))
        assert left.apart(right)
        assert not left.apart(replace(right, inputs=0b1010))  # the left went into it
        assert not left.apart(replace(right, inputs=0b10000))  # nothing in common

    def test_unseen_layers_are_heads_when_they_read_one_width_and_cannot_be_chained(self) -> None:
        unseen = replace(PLAIN, first=math.inf, last=math.inf)
        heads = [replace(unseen, width=width) for width in ((8, 3), (8, 2), (8, 8), (4, 8))]
        assert heads[0].apart(heads[1])
        assert not heads[0].apart(heads[2])
        assert not heads[2].apart(heads[0])
        assert not heads[0].apart(heads[3])
        assert not replace(heads[0], first=3).apart(heads[1])


class TestLevel:
    def test_it_is_named_after_what_has_a_weight_matrix(self) -> None:
        norm, layer = replace(PLAIN, labels=("norm",), weights=0), replace(PLAIN, labels=("layer",))
        assert Level.of([norm, layer]).labels == ("layer",)
        assert Level.of([norm]).labels == ("norm",)

    def test_absorbing_keeps_the_name_and_merging_adds_the_names(self) -> None:
        one, other = level("a", 2), level("b", 3)
        assert one.absorb(other).labels == ("a",)
        assert merge([one, other]).labels == ("a", "b")
        assert one.absorb(other).names == merge([one, other]).names == ("a", "b")
        assert merge([one, other]).size == 5

    def test_only_single_layers_make_a_level_of_layers(self) -> None:
        assert level("a").is_layer
        assert merge([level("a"), level("n", weights=0)]).is_layer
        assert not level("n", weights=0).is_layer
        assert not level("block", block=True).is_layer
        assert not merge([level("a"), level("block", block=True)]).is_layer
        assert not Level.of([replace(PLAIN, listed=True)]).is_layer

    def test_masks_are_united(self) -> None:
        assert union([0b001, 0b100, 0b101]) == 0b101
        assert union([]) == 0


class TestJoin:
    def test_a_norm_joins_what_is_before_it_and_the_first_one_what_follows(self) -> None:
        levels = [level("norm0", weights=0), level("a"), level("norm1", weights=0), level("b")]
        assert names(join(levels)) == ["a+norm0+norm1", "b"]
        assert names(join([level("norm0", weights=0), level("norm1", weights=0)])) == ["norm0+norm1"]

    def test_single_layers_before_the_first_block_are_the_stem(self) -> None:
        levels = [level("conv1"), level("conv2"), level("block1", 9, block=True), level("head")]
        assert names(join(levels)) == ["conv1+conv2", "block1", "head"]
        assert names(join([level("a"), level("b"), level("head")])) == ["a", "b", "head"]  # no block repeats

    def test_a_small_layer_joins_the_block_that_it_feeds_and_a_large_one_stays(self) -> None:
        blocks = [level("block1", 9, block=True), level("block2", 9, block=True)]
        assert names(join([blocks[0], level("merging", 8), blocks[1], level("head")])) == [
            "block1",
            "block2+merging",
            "head",
        ]
        assert names(join([blocks[0], level("large", 9), blocks[1], level("head")])) == [
            "block1",
            "large",
            "block2",
            "head",
        ]

    def test_a_layer_after_the_last_block_joins_it_but_the_head_does_not(self) -> None:
        blocks = [level("block1", 9, block=True), level("block2", 9, block=True)]
        assert names(join([*blocks, level("conv", 8), level("head", 1)])) == ["block1", "block2+conv", "head"]
        assert names(join(blocks)) == ["block1", "block2"]  # a backbone without a head

    def test_what_was_not_called_comes_after_the_head(self) -> None:
        assert names(join([level("a"), level("head")], [level("norm", weights=0), level("spare")])) == [
            "a",
            "head+norm",
            "spare",
        ]


class TestBalance:
    def test_few_levels_stay_as_they_are(self) -> None:
        levels = [level("a"), level("b")]
        assert balance(levels, 2) is levels

    def test_squared_sizes_are_least_and_the_head_is_alone(self) -> None:
        levels = [level(name, size) for name, size in (("a", 1), ("b", 1), ("c", 8), ("d", 1), ("head", 1))]
        assert names(balance(levels, 3)) == ["a+b", "c+d", "head"]
        assert names(balance(levels, 4)) == ["a+b", "c", "d", "head"]

    def test_of_two_stages_the_head_has_company_where_that_is_even(self) -> None:
        levels = [level(name, 4) for name in "abcd"]
        assert names(balance(levels, 2)) == ["a+b", "c+d"]
        assert names(balance(levels, 1)) == ["a+b+c+d"]

    @pytest.mark.parametrize("count", [1500, 2500])
    def test_thousands_of_levels_are_halved_first(self, count: int) -> None:
        found = balance([level(str(place)) for place in range(count)], 5)
        assert len(found) == 5
        assert sum(one.size for one in found) == count
        assert found[-1].names == (str(count - 1),)
