"""`lightning-freeze suggest`: its options; tests/suggest/test_api.py runs it."""

from __future__ import annotations

import pytest

from lightning_freeze.cli import main


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["suggest", "--help"])
    said = capsys.readouterr().out
    assert all(option in said for option in ("--config", "--budget", "--out", "--monitor", "--folds", "--seed"))


def test_a_config_that_is_not_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suggest", "--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
