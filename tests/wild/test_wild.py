"""Modules of other packages under all callbacks, through the entry points of these packages (`pytest -m wild`)."""

from __future__ import annotations

import pytest
from wild_cases import CASES, missing
from wild_checks import KNOWN, check, is_bad

pytestmark = [pytest.mark.wild, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", CASES)
def test_a_module_of_another_package_trains_as_declared(name: str) -> None:
    if why := missing(name):
        pytest.skip(why)
    row = check(name)
    assert set(is_bad(row)) == KNOWN.get(name, (set(), ""))[0], row
