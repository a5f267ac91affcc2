"""Rows in a folder: seen by others, limited for all, and never served when they are not what was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_freeze import PlanError
from lightning_freeze.cache.folder import RECORDS, ROWS, Folder, RowFiles, clear, kinds_in
from lightning_freeze.cache.row_store import Address, Record

ADDRESS: Address = "kind", True, {"name": "stem", "model": "Net"}


OPEN: list[RowFiles] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def store(path: Path, dtype: torch.dtype = torch.float32, size: int = 1 << 20) -> RowFiles:
    made = Folder(path, size, persist=True).open((3,), dtype, ADDRESS)
    assert made is not None
    OPEN.append(made)
    return made


def put(one: RowFiles, keys: list[int], rows: Tensor) -> list[int]:
    slots = one.put([(key, -key) for key in keys], rows, 4, 7, list(range(len(keys))))
    one.publish(valid=True)
    return slots


def keys(records: list[Record]) -> list[int]:
    return [one.first for one in records if one.tag >= 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_another_process_finds_the_rows_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = (torch.randn(5, 3) * 9).to(dtype)
    writer, reader = store(tmp_path, dtype), store(tmp_path, dtype)
    mine = put(writer, [1, 2, 3], rows[:3])
    assert torch.equal(writer.get(mine[::-1]), rows[:3].flip(0))
    put(writer, [4, 5], rows[3:])
    records = reader.news()
    assert keys(records) == [1, 2, 3, 4, 5]
    assert {(one.second, one.size) for one in records} == {(-key, 4) for key in range(1, 6)}
    slots = [one.tag for one in records]
    assert not reader.torn(slots)
    own = put(reader, [6], rows[:1])
    assert torch.equal(reader.get([*slots, *own]), torch.cat([rows, rows[:1]]))
    assert keys(reader.news()) == []
    assert keys(writer.news()) == [6]


def test_nothing_is_shown_before_it_is_published_and_nothing_if_it_is_wrong(tmp_path: Path) -> None:
    writer, reader = store(tmp_path), store(tmp_path)
    writer.put([(1, 1)], torch.ones(1, 3), 1, 1, [0])
    assert writer.pending
    assert reader.news() == []
    writer.publish(valid=False)
    assert not writer.pending
    put(writer, [2], torch.ones(1, 3))
    assert keys(reader.news()) == [2]


DAMAGE: dict[str, Any] = {
    "a flipped bit of a row": (ROWS, lambda data: data[:13] + bytes([data[13] ^ 1]) + data[14:], [1, 3]),
    "a flipped bit of a record": (RECORDS, lambda data: data[:70] + bytes([data[70] ^ 16]) + data[71:], [1, 3]),
    "a row cut off": (ROWS, lambda data: data[:-1], [1, 2]),
    "a record cut off": (RECORDS, lambda data: data[:-1], [1, 2]),
    "rows of zeros": (ROWS, lambda data: bytes(len(data)), []),
    "no rows": (ROWS, lambda data: b"", []),
    "no records": (RECORDS, lambda data: b"", []),
    "rows of another kind": (ROWS, lambda data: data[::-1], []),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_torn_is_dropped_and_not_served(what: str, tmp_path: Path) -> None:
    ending, change, good = DAMAGE[what]
    put(store(tmp_path), [1, 2, 3], torch.randn(3, 3))
    (path,) = tmp_path.glob(f"kind/*{ending}")
    path.write_bytes(change(path.read_bytes()))
    reader = store(tmp_path)
    records = reader.news()
    torn = reader.torn([one.tag for one in records])
    assert [one.first for one in records if one.tag not in torn] == good
    later = store(tmp_path)
    assert not set(keys(later.news())) - set(keys(records)) - {1, 2, 3}
    if torn and what != "no rows":  # void for good
        assert keys(store(tmp_path).news()) == good


def test_the_limit_is_that_of_all_processes(tmp_path: Path) -> None:
    row = 3 * 4 + 64
    one, other = store(tmp_path, size=6 * row + 300), store(tmp_path, size=6 * row + 300)
    stored = len(put(one, [1, 2], torch.ones(2, 3))) + len(put(other, list(range(9)), torch.ones(9, 3)))
    stored += len(put(one, list(range(9)), torch.ones(9, 3)))
    assert 5 <= stored <= 8
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 6 * row + 300
    assert Folder(tmp_path, 10, persist=True).open((3,), torch.float32, ("other", True, {})) is None
    assert Folder(tmp_path, 10, persist=True).open((3,), torch.float32, ADDRESS) is not None  # what is there is served


def test_more_than_the_disk_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="GiB free, and max_gb asks for"):
        Folder(tmp_path, 1 << 62)


def test_what_is_not_kept_goes_at_the_end(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "run", 1 << 20)
    one = folder.open((3,), torch.float32, ("kind", False, {}))
    assert one is not None
    one.put([(1, 1)], torch.ones(1, 3), 1, 1, [0])
    assert list(tmp_path.rglob(f"*{ROWS}"))
    one.close()
    assert not list(tmp_path.rglob(f"*{ROWS}"))
    folder.close()
    assert not list(tmp_path.iterdir())


def test_what_is_in_a_folder_is_told(tmp_path: Path) -> None:
    put(store(tmp_path), [1, 2, 3], torch.randn(3, 3))
    (told,) = kinds_in(tmp_path)
    assert (told["name"], told["model"], told["rows"]) == ("stem", "Net", 3)
    assert told["torch"] == torch.__version__
    (tmp_path / "kind" / "about.json").write_text("{")
    assert kinds_in(tmp_path)[0]["rows"] == 3
    clear(tmp_path)
    assert not list(tmp_path.iterdir())
