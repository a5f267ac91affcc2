"""The preview as text: stages by time with rates and bytes, in as many parts as the screen has room for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from previewing import RATES, UNFREEZE, code_in, config

from lightning_freeze.preview.simulation import Preview, preview
from lightning_freeze.preview.text import text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return code_in(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def planned(folder: Path) -> Preview:
    return preview([config(folder, UNFREEZE, RATES)], worlds=[1, 4])


@pytest.fixture(scope="module")
def many(folder: Path) -> Preview:
    windows = [{"patterns": "mid", "start": k, "stop": k + 1} for k in range(0, 40, 2)]
    freezes = [{"class_path": "lightning_freeze.FreezeLayers", "init_args": window} for window in windows]
    return preview([config(folder, *freezes, trainer__max_epochs=40)])


def test_stages_by_time_with_rates_sizes_and_bytes(planned: Preview) -> None:
    said = text(planned)
    assert "4 epochs, 20 optimizer steps, AdamW" in said
    assert re.search(r"epoch 0 +epoch 1 +epoch 2\n", said)
    assert re.search(r"step 0 +step 5 +step 10\n", said)
    assert re.search(r"head +1 +1\.00e-02 +5\.00e-03 +2\.50e-03\n", said)
    assert re.search(r"mid +0\.1 +- +5\.00e-04 +2\.50e-04\n", said)
    assert re.search(r"stem +0\.01 +- +- +2\.50e-05\n", said)
    assert re.search(r"trainable +15 +39 +63\n", said)
    assert re.search(r"gradients +60 B +156 B +252 B\n", said)
    assert re.search(r"optimizer state +120 B +312 B +504 B", said)


def test_the_table_of_the_run_comes_first_and_remarks_come_last(planned: Preview) -> None:
    planned.remarks[:] = ["the first remark", "the first remark"]
    said = text(planned)
    assert said.startswith(planned.table)
    assert said.endswith("the first remark")
    assert said.count("the first remark") == 1


def test_memory_of_one_process_by_number_and_strategy(planned: Preview) -> None:
    said = text(planned)
    for row in (
        r"1 process: total +432 B +720 B +1\.01 kB",
        r"4 processes, DDP: total +432 B +720 B +1\.01 kB",
        r"4 processes, FSDP2: total +128 B +200 B +272 B",
        r"  weights +252 B +252 B +252 B",
        r"  gradients +60 B +156 B +252 B",
        r"  state +120 B +312 B +504 B",
    ):
        assert re.search(row, said), row
    assert "1 process, FSDP2" not in said
    assert "without the parameters that FSDP2 gathers for a layer" in said


def test_without_worlds_there_is_no_table_of_memory(many: Preview) -> None:
    assert "memory of one process" not in text(many)


def test_many_changes_are_shown_as_a_few_equal_parts(many: Preview) -> None:
    said = text(many)
    assert said.partition("optimizer steps")[2].count("epoch ") < 15
    parts = re.search(r"epoch 0 +epoch ([\d.]+) +epoch ([\d.]+) ", said)
    assert parts is not None
    assert float(parts[2]) == pytest.approx(2 * float(parts[1]), abs=1)


@pytest.mark.parametrize("width", [40, 60, 140])
def test_a_narrow_screen_has_fewer_parts_and_no_broken_line(
    width: int, many: Preview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    by_time = text(many)[len(many.table) :].splitlines()
    assert max(map(len, by_time)) <= width
    heads = next(line for line in by_time if line.count("epoch ") > 1 and "epochs" not in line)
    assert heads.count("epoch ") == {40: 2, 60: 4, 140: 8}[width]
