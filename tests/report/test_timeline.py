"""A run in numbers: stages by time, kept short, and the same after a checkpoint."""

from __future__ import annotations

import json
from typing import Any

from layered import Layered, running

from lightning_freeze import GradualUnfreeze, GroupOptions, LayerwiseLR
from lightning_freeze.report.timeline import Sample, Timeline, stage_members, stage_names, stage_rates
from lightning_freeze.schedule.moments import Progress


def rates(run: Any) -> list[list[float]]:
    return [[slot.lr for slot in run.view.slots]]


def test_stages_are_in_order_of_training_with_the_rest_at_the_end() -> None:
    with running([GradualUnfreeze(["head", "layers"])]) as run:
        members = stage_members(run.view)
        assert list(members) == stage_names(run.view) == ["head", "layers", "rest"]
        assert sorted(name for names in members.values() for name in names) == sorted(run.index.parameters)


def test_a_stage_that_is_called_rest_is_told_from_what_is_in_none() -> None:
    with running([GradualUnfreeze(["head", {"name": "rest", "patterns": "layers"}])]) as run:
        assert stage_names(run.view) == ["head", "rest", "rest (in no stage)"]


def test_a_frozen_stage_has_no_rate_and_of_several_the_largest_counts() -> None:
    with running([GradualUnfreeze(["head", "layers"]), LayerwiseLR(0.5, stages=["head", "layers"])]) as run:
        found = stage_rates(run.view, rates(run))
        assert found["head"] == 0.5
        assert found["layers"] is None
        run.reconcile(Progress(1, 2, 10))
        assert stage_rates(run.view, rates(run))["layers"] == 0.25


def test_of_the_slots_of_a_stage_the_fastest_counts() -> None:
    with running([GradualUnfreeze(["head", "layers"]), GroupOptions({"kind:bias": {"weight_decay": 0.5}})]) as run:
        used = [[0.1 * (place + 1) for place, _ in enumerate(run.view.slots)]]
        of_head = [rate for slot, rate in zip(run.view.slots, used[0], strict=True) if slot.label == "head"]
        assert len(of_head) == 2
        assert stage_rates(run.view, used)["head"] == max(of_head)


def timeline(run: Any) -> Timeline:
    found = Timeline()
    found.begin(run.view, "Net")
    return found


def test_sizes_add_up_to_the_model() -> None:
    with running([GradualUnfreeze(["head", "layers"])]) as run:
        found = timeline(run)
        assert sum(found.sizes) == found.parameters == sum(p.numel() for p in Layered().parameters())
        assert found.stages == ["head", "layers", "rest"]


def test_a_sample_at_the_same_time_takes_the_place_of_the_last_and_a_change_stays_one() -> None:
    with running([GradualUnfreeze(["head", "layers"])]) as run:
        found = timeline(run)
        found.add(run.view, rates(run), 0.0, 0, change=True)
        found.add(run.view, rates(run), 0.0, 0)
        assert [(sample.time, sample.change, sample.trainable) for sample in found.samples] == [(0.0, True, 8)]
        found.add(run.view, rates(run), 1.5, 3)
        assert found.samples[-1] == Sample(1.5, 3, [0.5, None, None], 8, False)
        assert found.end == 1.5


def test_a_long_run_is_thinned_but_keeps_every_change() -> None:
    with running([GradualUnfreeze(["head", "layers"])]) as run:
        found = timeline(run)
        for step in range(2000):
            found.add(run.view, rates(run), step / 100, step, change=step in (1, 501, 1999))
        assert len(found.samples) <= 801
        assert [sample.step for sample in found.samples if sample.change] == [1, 501, 1999]
        assert found.samples[0].step == 0
        assert found.thinned > 1
        times = [sample.time for sample in found.samples]
        assert times == sorted(times)


def test_its_record_is_plain_and_gives_the_same_timeline() -> None:
    with running([GradualUnfreeze(["head", "layers"])]) as run:
        found = timeline(run)
        found.add(run.view, rates(run), 0.0, 0, change=True)
        found.metric, found.values = "val", [(1.0, 0.5)]
        assert Timeline.of(json.loads(json.dumps(found.record()))) == found
