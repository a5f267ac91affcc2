"""Every parameter is in one row of the table, and what the row says of it is true."""

from __future__ import annotations

import pytest
from layered import Layered, running

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR
from lightning_freeze.report.start_rows import Facts, Part, grouped, parts_of
from lightning_freeze.schedule.moments import Progress


def test_every_parameter_is_in_one_part_stage_by_stage_and_the_rest_last() -> None:
    with running([GradualUnfreeze(["head", "layers"])]) as run:
        parts = parts_of(run.view)
        assert [part.name for part in parts] == ["head", "layers", "rest"]
        assert sorted(name for part in parts for name in part.names) == sorted(run.index.parameters)
        assert [part.when for part in parts] == ["epoch 0", "epoch 1", "never"]


def test_without_stages_each_policy_that_names_something_has_a_part() -> None:
    with running([BatchNormEval(), FreezeLayers("stem")]) as run:
        found = {part.name: part for part in parts_of(run.view)}
        assert list(found) == ["FreezeLayers", "rest"]
        assert set(found["FreezeLayers"].names) == {"stem.weight", "stem.bias"}
        assert found["rest"].when == "always"


def test_what_starts_after_the_end_is_late() -> None:
    with running([GradualUnfreeze(["head", "layers", "stem"])]) as run:
        assert [part.late for part in parts_of(run.view, Progress(1, 9, 10))] == [False, False, True]
        assert not any(part.late for part in parts_of(run.view))


def test_of_two_schedules_the_later_start_counts() -> None:
    with running([GradualUnfreeze(["head", "*"]), GradualUnfreeze(["head", ["*"]], every_n_epochs=3)]) as run:
        assert [part.when for part in parts_of(run.view)] == ["epoch 0", "epoch 3"]


def test_starts_in_different_units_are_both_told() -> None:
    policies = [GradualUnfreeze(["head", "*"]), GradualUnfreeze(["head", ["*"]], every_n_train_steps=5)]
    with running(policies) as run:
        assert parts_of(run.view)[1].when == "epoch 1 and step 5"


class TestGrouped:
    def parts(self, count: int) -> list[Part]:
        return [Part(f"block{place}", [f"b{place}"], f"epoch {place}") for place in range(count)]

    def test_few_stay_as_they_are(self) -> None:
        assert grouped(self.parts(5), 5) == self.parts(5)

    def test_neighbours_stand_together_and_the_ends_alone(self) -> None:
        found = grouped(self.parts(10), 4)
        assert [part.name for part in found] == ["block0", "block1-4 (4)", "block5-8 (4)", "block9"]
        assert [part.when for part in found] == ["epoch 0", "epoch 1 to 4", "epoch 5 to 8", "epoch 9"]
        assert sum(len(part.names) for part in found) == 10

    @pytest.mark.parametrize("count", [26, 27, 50, 999])
    def test_never_more_than_asked_for_and_nothing_is_lost(self, count: int) -> None:
        found = grouped(self.parts(count))
        assert len(found) <= 25
        assert [name for part in found for name in part.names] == [f"b{place}" for place in range(count)]

    def test_names_that_do_not_count_up_are_the_first_and_the_last(self) -> None:
        parts = [Part(name, [name], "epoch 1", late=name == "c") for name in "abcde"]
        found = grouped(parts, 3)
        assert [(part.name, part.when, part.late) for part in found] == [
            ("a", "epoch 1", False),
            ("b … d (3)", "epoch 1", True),
            ("e", "epoch 1", False),
        ]


class TestFacts:
    def test_sizes_slots_and_norms_of_any_parameters(self) -> None:
        with running([GradualUnfreeze(["head", "layers"]), LayerwiseLR(0.5), BatchNormEval("layers.0")]) as run:
            run.reconcile(Progress(1, 5, 100))  # a frozen BatchNorm is in eval mode too
            facts, names = Facts(run.view), [name for name in run.index.parameters if name.startswith("layers")]
            assert facts.size(names) == sum(parameter.numel() for parameter in Layered().layers.parameters())
            assert [slot.label for slot in facts.slots(names)] == ["layers"]
            assert facts.norms(names) == (3, 1)
            assert facts.norms(["head.weight"]) == (0, 0)
            assert facts.has_factors

    def test_who_freezes_is_named_where_the_row_is_of_another(self) -> None:
        model = Layered()
        model.stem.bias.requires_grad_(False)
        policies = [GradualUnfreeze(["head", "stem"]), FreezeLayers("layers.0"), FreezeLayers("layers.1")]
        with running(policies, model) as run:
            facts = Facts(run.view)
            assert facts.frozen_by(["stem.weight"]) == []
            assert facts.frozen_by(["stem.bias"]) == ["you, before the fit"]
            assert facts.frozen_by(["head.weight"]) == []
            assert not facts.has_factors
