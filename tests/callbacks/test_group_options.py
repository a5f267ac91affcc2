"""Options of the optimizer by pattern: the same bits as with groups built by hand, in no more groups than needed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers import STAGES, TRUSTED, Batches, Net, Spy, fit, tensors, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lightning_freeze import GradualUnfreeze, GroupOptions, LayerwiseLR, PlanError, ResumeError, select

BARE = {"kind:norm": {"weight_decay": 0.0}, "kind:bias": {"weight_decay": 0.0}}


def by_hand(model: Any) -> Any:
    bare = set(select(model, ["kind:norm", "kind:bias"]))
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in bare]},
        {"params": [p for name, p in model.named_parameters() if name in bare], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.01, weight_decay=0.3)


def plain(model: Any) -> Any:
    return AdamW(model.parameters(), lr=0.01, weight_decay=0.3)


def with_schedule(make: Any, schedule: Any) -> Any:
    def optimizers(model: Any) -> Any:
        optimizer = make(model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer), "interval": "step"}}

    return optimizers


def groups_of(model: Any) -> list[dict[str, Any]]:
    return model.trainer.optimizers[0].param_groups


@pytest.mark.parametrize(
    "schedule",
    [lambda optimizer: StepLR(optimizer, 2), lambda optimizer: OneCycleLR(optimizer, 0.02, total_steps=20)],
    ids=["step", "one cycle, momentum too"],
)
def test_a_run_ends_with_the_bits_of_groups_built_by_hand(schedule: Any) -> None:
    mine = Net(with_schedule(plain, schedule))  # seeds, and Dropout draws
    fit(mine, [GroupOptions(BARE, verbose=False)])
    hand = Net(with_schedule(by_hand, schedule))
    fit(hand, [])

    assert [group["weight_decay"] for group in groups_of(mine)] == [0.3, 0.0]
    for name, tensor in tensors(hand).items():
        assert torch.equal(tensor, tensors(mine)[name]), name


def test_there_are_as_many_groups_as_settings() -> None:
    model = Net(plain)
    fit(model, [GroupOptions({"kind:norm": {"weight_decay": 0.0}, "kind:bias": {"weight_decay": 0.0, "eps": 1e-8}})])
    assert len(groups_of(model)) == 2  # eps is 1e-8 anyway

    model = Net(plain)
    fit(model, [GroupOptions({"*": {"weight_decay": 0.3, "betas": [0.9, 0.999]}})])
    assert len(groups_of(model)) == 1


def test_a_later_entry_wins_and_lists_become_tuples() -> None:
    model = Net(plain)
    fit(model, [GroupOptions({"*": {"betas": [0.5, 0.9], "eps": 1e-6}, "head": {"eps": 1e-4}}, verbose=False)])

    assert [(group["betas"], group["eps"]) for group in groups_of(model)] == [((0.5, 0.9), 1e-6), ((0.5, 0.9), 1e-4)]


def test_stages_rates_and_options_meet_in_slots_named_after_them() -> None:
    model = Net(with_schedule(plain, lambda optimizer: StepLR(optimizer, 2)))
    callbacks = [GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(decay=0.5), GroupOptions(BARE, verbose=False)]
    fit(model, callbacks)

    found = {group["name"]: (group["initial_lr"], group["weight_decay"]) for group in groups_of(model)}
    assert found == {
        "stem": (0.0025, 0.3),
        "stem/weight_decay=0": (0.0025, 0.0),
        "mid": (0.005, 0.3),
        "mid/weight_decay=0": (0.005, 0.0),
        "head": (0.01, 0.3),
        "head/weight_decay=0": (0.01, 0.0),
    }


def test_the_table_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Net(plain), [GroupOptions({"kind:norm": {"weight_decay": 0.0}})])
    line = next(line for line in capsys.readouterr().out.splitlines() if "kind:norm" in line)

    assert "weight_decay=0" in line


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(tmp_path: Any) -> None:
    def run(options: Any, checkpoint: Any = None) -> Any:
        model = Net(plain)
        torch.manual_seed(1)  # for Dropout
        kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, enable_version_counter=False)
        start = Spy("on_train_epoch_start", lambda trainer, _: torch.manual_seed(trainer.current_epoch))
        callbacks = [GradualUnfreeze(STAGES, verbose=False), GroupOptions(options, verbose=False), kept, start]
        one = trainer(callbacks, enable_checkpointing=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            one.fit(model, Batches(2), Batches(1), ckpt_path=checkpoint, **TRUSTED)
        return model

    whole = run(BARE)
    resumed = run(BARE, tmp_path / "epoch=1.ckpt")

    for name, tensor in tensors(whole).items():
        assert torch.equal(tensor, tensors(resumed)[name]), name
    with pytest.raises(ResumeError, match="does not fit GroupOptions"):
        run({"kind:norm": {"weight_decay": 0.1}}, tmp_path / "epoch=1.ckpt")


@pytest.mark.parametrize(
    ("optimizers", "options", "message"),
    [
        (plain, {"head": {"momentum": 0.5}}, r"of 'head': AdamW has no option 'momentum'.\n  It has: betas, eps"),
        (
            with_schedule(plain, lambda optimizer: OneCycleLR(optimizer, 0.02, total_steps=20)),
            {"head": {"betas": [0.5, 0.9]}},
            r"sets 'betas' in each step.*\n.*cycle_momentum=False",
        ),
    ],
)
def test_what_the_optimizer_does_not_take_is_refused_at_the_start(optimizers: Any, options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        fit(Net(optimizers), [GroupOptions(options, verbose=False)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must be a dict"),
        ({"head": {}}, "of 'head': {} must be a dict"),
        ({"head": {"lr": 0.1}}, r"'lr' is a learning rate.*\n  Use LayerwiseLR"),
        ({"head": {"params": []}}, "'params' is not an option"),
    ],
)
def test_what_can_be_no_option_is_refused_at_construction(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        GroupOptions(options)


def test_two_of_them_add_up_and_may_not_contradict_each_other() -> None:
    one, other = ({"head": {"weight_decay": 0.1}}, {"head": {"eps": 1e-4}})
    model = Net(plain)
    fit(model, [GroupOptions(one, verbose=False), GroupOptions(other, verbose=False)])
    assert groups_of(model)[1]["eps"] == 1e-4

    with pytest.raises(
        PlanError, match=r"weight_decay=0.2 is asked for 'head.weight', and another callback asks for 0.1"
    ):
        fit(Net(plain), [GroupOptions(one), GroupOptions({"head": {"weight_decay": 0.2}})])


def test_an_optimizer_of_an_earlier_fit_keeps_its_options_and_is_refused() -> None:
    kept: list[Any] = []
    model = Net(lambda model: kept[0] if kept else kept.append(SGD(model.parameters(), 0.1)) or kept[0])
    fit(model, [GroupOptions({"head": {"momentum": 0.5}}, verbose=False)])

    with pytest.raises(Exception, match="whose rates or options are set per layer already"):
        fit(model, [GroupOptions({"head": {"momentum": 0.5}}, verbose=False)])
