"""Pictures hold many stages, and every label can be read."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from lightning_freeze.report.plot import _changes, _unfreezings, draw
from lightning_freeze.report.timeline import Sample, Timeline


@pytest.mark.parametrize("stages", [1, 12, 200])
def test_a_picture_holds_any_number_of_stages(tmp_path: Path, stages: int) -> None:
    samples = [
        Sample(
            float(time), time, [0.1 / (k + 1) if k <= time * stages / 10 else None for k in range(stages)], time, True
        )
        for time in range(10)
    ]
    names = [f"model.encoder.layer_with_a_long_name.{k}" for k in range(stages)]
    timeline = Timeline("Net", names, [1000] * stages, 10, samples, 10.0)
    draw(timeline, tmp_path / "plan.png")
    height, width = matplotlib.image.imread(tmp_path / "plan.png").shape[:2]
    assert width == 1140
    assert height <= 120 * 21
    assert height >= 119 * min(2.4 + 0.32 * stages, 20)


@pytest.mark.parametrize(("changes", "lines"), [(60, 60), (61, 0)])
def test_each_change_after_the_start_is_a_line_unless_there_are_too_many(changes: int, lines: int) -> None:
    samples = [Sample(float(time), time, [0.1], 1, time % 2 == 0) for time in range(2 * changes + 1)]
    found = _changes(Timeline("Net", ["a"], [1], 1, samples, 2.0 * changes))
    assert found == [2.0 * place for place in range(1, lines + 1)]


def test_a_change_in_the_first_batch_is_marked_and_the_state_at_the_start_is_not() -> None:
    rates: list[list[float | None]] = [[0.1, None], [0.1, 0.1], [None, 0.1]]
    samples = [Sample(float(time), time, rates[time], 1, True) for time in range(3)]
    top = Figure().add_subplot()
    _unfreezings(top, Timeline("Net", ["a", "b"], [1, 1], 2, samples, 3.0), points=20)
    assert [marks.get_offsets().tolist() for marks in top.collections] == [[[1.0, 1.0]], [[2.0, 0.0]]]
