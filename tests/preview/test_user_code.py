"""The line of the user's own code in the traceback of an error, through every error that was raised from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_freeze.errors import PlanError
from lightning_freeze.preview.user_code import chain, described, origin


def raised(function: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


def in_a_library() -> None:
    json.loads("{")  # here


def test_the_line_that_called_the_library_is_found() -> None:
    found = origin(raised(in_a_library))
    assert found is not None
    assert found.file.endswith("test_user_code.py")
    assert (found.function, found.text) == ("in_a_library", 'json.loads("{")  # here')


def test_the_first_error_is_described_not_what_was_made_of_it() -> None:
    def wrapped() -> None:
        try:
            in_a_library()
        except ValueError as error:
            raise PlanError("of a parser") from error

    assert described(raised(wrapped)).startswith("JSONDecodeError: Expecting property name")


def test_an_error_that_no_code_of_the_user_led_to_has_no_origin() -> None:
    assert origin(ValueError("never raised")) is None
    assert described(ValueError("never raised")) == "ValueError: never raised"


def test_a_circle_of_causes_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert list(chain(one)) == [one, other]
