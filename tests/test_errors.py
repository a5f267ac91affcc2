"""Every error of the package is a FreezeError, and a FreezeError is a ValueError."""

from __future__ import annotations

import inspect

import pytest

import lightning_freeze
from lightning_freeze import FreezeError, errors

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("error", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_is_public_documented_and_caught_as_a_value_error(error: type[Exception]) -> None:
    assert getattr(lightning_freeze, error.__name__) is error
    assert inspect.getdoc(error)
    with pytest.raises(ValueError, match="what was asked"):
        raise error("what was asked")


def test_each_kind_of_error_can_be_caught_alone() -> None:
    kinds = [cls for cls in CLASSES if cls is not FreezeError]
    assert len(kinds) >= 6
    assert all(issubclass(cls, FreezeError) for cls in kinds)
    assert not any(issubclass(one, other) for one in kinds for other in kinds if one is not other)
