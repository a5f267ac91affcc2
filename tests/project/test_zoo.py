"""Optimizers and models of other libraries; run with `-m zoo`, where they are installed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import zoo


def pytest_generate_tests(metafunc: Any) -> None:
    """The cases need the libraries, which take seconds to import: only where the marker is chosen."""
    if "build" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("markexpr").strip() == "zoo"
    cases = zoo.cases() if chosen and not zoo.missing() else []
    own_generator = pytest.mark.xfail(strict=True, reason="draws from a generator that it does not save")
    metafunc.parametrize(
        "build",
        [
            pytest.param(build, id=f"{kind} {name}", marks=own_generator if name == "adahessian" else ())
            for kind, name, build in cases
        ],
    )


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_frozen_is_still_the_rest_trains_and_a_resume_is_identical(build: Any) -> None:
    zoo.check(build)


def test_the_page_says_what_this_file_tests_and_names_what_did_not_pass() -> None:
    text = zoo.PAGE.read_text()
    assert zoo.NOTES in text
    assert re.findall(r"^\| .*? \| \d+: .* \| (.*) \|$", text, flags=re.MULTILINE)[0].startswith("`adahessian`")
    assert text.count("| none |") == 3
