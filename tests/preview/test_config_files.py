"""A config is read without torch, and refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_freeze.errors import PlanError
from lightning_freeze.preview.config_files import read


def test_the_options_of_a_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("trainer: {max_epochs: 3}")
    assert read(tmp_path / "a.yaml") == {"trainer": {"max_epochs": 3}}


@pytest.mark.parametrize(
    ("text", "message"), [("a: *b", "is not valid YAML"), ("- a", "holds a list"), ("", "NoneType")]
)
def test_what_holds_no_options_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(PlanError, match=message):
        read(tmp_path / "a.yaml")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(PlanError, match=r"config nowhere\.yaml cannot be read: No such file"):
        read("nowhere.yaml")
