"""`lightning-freeze stages --input`: dtypes, and several inputs by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_freeze.cli import main

CODE = """
import torch


class Reader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 2)
        self.words = torch.nn.Embedding(10, 4)

    def forward(self, input_ids, attention_mask=None):
        assert input_ids.dtype == torch.int64
        assert attention_mask is None or (attention_mask.dtype == torch.bool and bool(attention_mask.all()))
        return self.head(self.words(input_ids))
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "reading.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "reading:Reader"


@pytest.mark.parametrize("written", ["1x8:int64", "input_ids=1x8:int64", "input_ids=1x8:int64,attention_mask=1x8:bool"])
def test_a_language_model_is_ordered_by_execution(model: str, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stages", model, "--input", written]) == 0
    said = capsys.readouterr().out
    assert said.index("head") < said.index("words"), "in order of registration words would be the head"


@pytest.mark.parametrize(
    ("written", "said"),
    [("1x8:int65", "int65 is not a dtype of torch"), ("ids=1x8,3", "is not a shape"), ("2 ids=1x8", "is not a shape")],
)
def test_what_cannot_be_an_input_ends_in_status_2(
    model: str, written: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stages", model, "--input", written]) == 2
    assert said in capsys.readouterr().err
