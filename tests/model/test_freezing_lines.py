"""Which lines of a class freeze parameters."""

from __future__ import annotations

from torch import nn

from lightning_freeze.model.freezing_lines import freezing_lines


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
        self.body.requires_grad_(False)  # first


class Derived(Base):
    def __init__(self) -> None:
        super().__init__()
        # requires_grad = False, in a comment, freezes nothing
        for parameter in self.head.parameters():
            parameter.requires_grad = False
        self.head.requires_grad_(True)


def test_the_lines_of_a_class_and_of_the_users_classes_above_it_are_found() -> None:
    lines = freezing_lines(Derived)
    assert [line.partition(" (")[0] for line in lines] == [
        "'parameter.requires_grad = False'", "'self.body.requires_grad_(False)'"
    ]  # fmt: skip
    assert all("(test_freezing_lines.py, line " in line for line in lines)


def test_libraries_and_classes_without_source_have_none() -> None:
    space: dict[str, type] = {}
    exec("class Made:\n    def __init__(self):\n        self.requires_grad = False", space)
    assert freezing_lines(nn.Transformer) == freezing_lines(space["Made"]) == []
