"""Sentences under the table about the merged state of a run."""

from __future__ import annotations

import pytest

from lightning_freeze.report.remarks import listed, spans


@pytest.mark.parametrize(
    ("names", "text"), [(["a"], "a"), (["a", "b", "c"], "a, b, c"), (["a", "b", "c", "d", "e"], "a, b, c and 2 more")]
)
def test_the_first_names_are_listed_and_the_others_counted(names: list[str], text: str) -> None:
    assert listed(names) == text


@pytest.mark.parametrize(
    ("epochs", "text"),
    [([0], "epoch 0"), ([0, 1, 2], "epochs 0 to 2"),
     ([1, 2, 5, 7, 8], "epochs 1 to 2, epoch 5, epochs 7 to 8")]
)  # fmt: skip
def test_neighbouring_epochs_are_one_span(epochs: list[int], text: str) -> None:
    assert spans(epochs) == text
