"""The table at the start: every parameter in one row, in the words of its stage, on any screen."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR, Reconciler, Stage
from lightning_freeze.report.table import percentages, start_table
from lightning_freeze.schedule.moments import Progress


class Net(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 3)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(layers))
        self.head = nn.Linear(3, 2)


def table(policies: list[Any], model: nn.Module | None = None, scheduler: Any = None, **arguments: Any) -> str:
    model = Net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run = Reconciler(model, policies, [optimizer], [scheduler(optimizer)] if scheduler else [])
    run.reconcile(Progress(0, 0, 100))
    text = start_table(run.view, **arguments)
    run.close()
    return text


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{name} "))


def shares(text: str) -> list[float]:
    above = text.partition("\nall ")[0]
    return [float(share) for share in re.findall(r"([\d.]+)%(?! of|\))", above.split("─\n", 1)[1])]


def test_shares_add_up_when_rates_have_stages_of_their_own() -> None:
    text = table([GradualUnfreeze(["head", "layers"]), LayerwiseLR(0.5, stages=["head", "layers.2", "*"])])
    assert sum(shares(text)) == pytest.approx(100)
    names = [line.split()[0] for line in text.splitlines() if re.search(r"\d%  ?\S", line)]
    assert sorted(names) == ["head", "layers-and-rest", "layers.2", "rest"]


def test_percentages_add_up_to_a_hundred() -> None:
    assert percentages([1, 1, 1]) == ["33.4%", "33.3%", "33.3%"]
    assert percentages([0, 0]) == ["0.0%", "0.0%"]
    assert percentages([]) == []


def test_a_stage_of_several_patterns_has_a_readable_name_and_says_its_patterns() -> None:
    text = table([GradualUnfreeze(["head", ["layers.0", "layers.1", "layers.2"], ["*", "!stem.bias"]])], width=100)
    assert row(text, "layers.0-2")
    assert "* !stem.bias" in text
    assert "+" not in text


def test_the_base_rate_is_shown_where_a_warm_up_starts_at_zero() -> None:
    text = table(
        [GradualUnfreeze(["head", "*"]), LayerwiseLR(0.5)],
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10),
    )
    assert "5.00e-01" in row(text, "head")
    assert "2.50e-01" in row(text, "rest")


def test_rows_after_the_end_of_the_run_are_marked() -> None:
    text = table([GradualUnfreeze(["head", "layers", "*"])], end=Progress(1, 7, 8))
    assert "epoch 1 " in row(text, "layers")
    assert "!" not in row(text, "layers")
    assert "epoch 2 !" in row(text, "rest")
    assert "! begins after the end of the run" in text
    assert "!" not in table([GradualUnfreeze(["head", "layers", "*"])], end=Progress(2, 7, 8))


def test_a_long_trigger_that_rows_share_is_written_once() -> None:
    text = table([GradualUnfreeze(["head", "layers", "*"], monitor="val_loss", patience=4)])
    assert text.count("val_loss") == 1
    assert text.count("(a)") == 3


def test_frozen_by_names_only_who_else_freezes() -> None:
    model = Net()
    model.stem.bias.requires_grad_(False)
    text = table([GradualUnfreeze(["head", "layers", "stem"]), FreezeLayers("layers.0", stop=2)], model, width=120)
    assert "GradualUnfreeze" not in text
    assert "you, before the fit" in row(text, "stem")
    assert "frozen until epoch 2" in row(text, "FreezeLayers")


def test_of_two_schedules_a_stage_starts_with_the_later_one() -> None:
    policies = [GradualUnfreeze(["head", "layers", "*"]), GradualUnfreeze(["head", ["layers"], "*"], every_n_epochs=3)]
    text = table(policies)
    assert [row(text, name).split()[2] for name in ("head", "layers", "rest")] == ["0", "3", "6"]
    assert "backward pass" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_and_figures_fit_the_screen(width: int) -> None:
    policies = [GradualUnfreeze(["head", "layers", "stem"], warmup_steps=2), LayerwiseLR(0.5), BatchNormEval()]
    lines = table(policies, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("head") for line in lines)


def test_a_thousand_stages_make_a_short_table_in_less_than_a_second() -> None:
    model = Net(1000)
    stages = [Stage(f"block{place}", [f"layers.{place}"]) for place in reversed(range(1000))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run = Reconciler(model, [GradualUnfreeze(["head", *stages, "stem"]), LayerwiseLR(0.99)], [optimizer])
    run.reconcile(Progress())
    start = time.process_time()
    text = start_table(run.view, width=80)
    assert time.process_time() - start < 1
    assert len(text.partition("\nall ")[0].splitlines()) < 30
    assert sum(shares(text)) == pytest.approx(100)
    assert re.search(r"^block\d+-\d+ \(\d+\) +epoch \d+ to \d+", text, flags=re.MULTILINE)
    run.close()


def test_of_stages_that_start_together_the_one_nearer_to_the_head_is_in_front() -> None:
    pairs = GradualUnfreeze(["head", ["layers.2", "layers.1"], ["layers.0", "stem"]])
    for policies in ([pairs], [LayerwiseLR(0.5, stages=["head", "layers.2", "layers.1", "layers.0", "stem"]), pairs]):
        names = [line.split()[0] for line in table(list(policies)).partition("\nall ")[0].splitlines() if "%" in line]
        expected = ["head", "layers.1-2", "layers.0-and-1-more"] if len(policies) == 1 else []
        assert names[1:] == (expected or ["head", "layers.2", "layers.1", "layers.0", "stem"])


def test_two_callbacks_of_a_class_have_rows_and_patterns_of_their_own() -> None:
    text = table([FreezeLayers("layers.1", stop=2), FreezeLayers("stem")], width=120)
    assert re.search(r"frozen until epoch 2 .*layers\.1$", row(text, "FreezeLayers 1"))
    assert re.search(r"frozen throughout .*stem$", row(text, "FreezeLayers 2"))


def test_a_title_that_is_too_long_has_its_figures_on_a_line_of_their_own() -> None:
    first, second, *_ = table([GradualUnfreeze(["head", "layers"])], width=50).splitlines()
    assert (first, second) == ("lightning_freeze: Net", "  8 of 71 parameters (11.3%) train now")


def test_limits_of_the_last_stage_are_said_to_have_no_effect() -> None:
    def stages(**last: int) -> list[Any]:
        return [GradualUnfreeze(["head", Stage("low", "layers", **last)], monitor="loss")]

    text = table(stages(max_epochs=3, patience=2), width=200)
    assert "max_epochs=3 and patience=2 of 'low' have no effect: the last stage trains until the run ends." in text
    assert "no effect" not in table(stages())
