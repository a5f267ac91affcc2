"""The callbacks in real runs: when they act, who trains, and how they live beside each other."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
from typing import Any

import pytest
import torch
from helpers import (
    BEFORE_2_6,
    STAGES,
    Batches,
    Net,
    NeverTrains,
    Spy,
    each_epoch,
    fit,
    moved,
    tensors,
    trainable,
    trainer,
)
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar, TQDMProgressBar

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR, PatternError, PlanError, Stage
from lightning_freeze.engine.modes import is_held

# ---- who trains


class ByHand(Net):
    """The same schedule without any callback: flags and modes set in hooks, rates in groups of its own."""

    def configure_optimizers(self) -> Any:
        rates = {"stem": 0.0125, "mid": 0.025, "head": 0.05}
        groups = [{"params": list(getattr(self, name).parameters()), "lr": rate} for name, rate in rates.items()]
        optimizer = self.optimizers_of(groups)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        frozen = {0: ["stem", "mid"], 1: ["stem"], 3: ["mid"]}.get(self.current_epoch, [])
        for name in STAGES:
            getattr(self, name).train(name not in frozen).requires_grad_(name not in frozen)
            if name in frozen:
                getattr(self, name).zero_grad()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop", "Adagrad"])
def test_a_run_is_bit_identical_to_the_same_freezing_by_hand(name: str) -> None:
    def make(groups: Any) -> Any:
        return getattr(torch.optim, name)(groups, lr=0.05, **({"momentum": 0.9} if name == "SGD" else {}))

    def with_scheduler(module: Any) -> Any:
        optimizer = make(module.parameters())
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)]

    ends = []
    gradual, again = GradualUnfreeze(STAGES, verbose=False), FreezeLayers("mid", 3, 4)
    for model, used in ((Net(with_scheduler), [gradual, again, LayerwiseLR(0.5)]), (ByHand(make), [])):
        torch.manual_seed(1)
        fit(model, used, epochs=5)
        ends.append(tensors(model))
    assert not moved(*ends)


def test_the_order_in_the_list_changes_nothing() -> None:
    def callbacks() -> list[Any]:
        gradual = GradualUnfreeze(STAGES, warmup_steps=3, verbose=False)
        return [gradual, LayerwiseLR(0.5), BatchNormEval("stem", affine="freeze"), FreezeLayers("mid.0", 2, 3)]

    ends = []
    for order in list(itertools.permutations(range(4)))[::3]:
        model, made = Net(), callbacks()
        torch.manual_seed(1)
        fit(model, [made[place] for place in order], epochs=4)
        ends.append(tensors(model))
    assert all(not moved(ends[0], end) for end in ends)


# ---- models that grow late


class GrowsInSetup(Net):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.late, self.head = self.head, None

    def setup(self, stage: str) -> None:
        self.head = self.late
        del self.late


class GrowsInConfigureModel(GrowsInSetup):
    def setup(self, stage: str) -> None:
        pass

    def configure_model(self) -> None:
        if self.head is None:
            super().setup("fit")


@pytest.mark.parametrize("model", [GrowsInSetup, GrowsInConfigureModel])
def test_layers_made_in_setup_or_configure_model_are_known(model: Any) -> None:
    seen = each_epoch()
    fit(model(), [GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(0.5), BatchNormEval(), seen])
    assert seen.seen == ["h", "hm", "hms"]


@pytest.mark.parametrize("model", [GrowsInSetup, GrowsInConfigureModel])
def test_wrong_names_of_a_model_that_grows_late_are_still_refused_before_training(model: Any) -> None:
    model = type(
        "Late", (model,), {"training_step": NeverTrains.training_step, "validation_step": NeverTrains.training_step}
    )
    with pytest.raises(
        PatternError, match=r"(?s)pattern 'heat' matches none of the 8 parameters of Late\..*Closest: head"
    ):
        fit(model(), [GradualUnfreeze(["heat"])], num_sanity_val_steps=1)


# ---- the end of a run, and the next one


def test_early_stopping_ends_a_run_and_the_warning_follows() -> None:
    stopping, seen = EarlyStopping("val", patience=2), each_epoch()
    with pytest.warns(UserWarning, match="never unfrozen: stem"):
        fit(Net(metrics=[1.0] * 9), [GradualUnfreeze(STAGES, at=[0, 1, 5], verbose=False), stopping, seen], epochs=9)
    assert seen.seen == ["h", "hm", "hm"]


def test_early_stopping_and_a_metric_trigger_each_count_for_themselves() -> None:
    metrics = [1.0, 1.0, 1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    stopping, seen = EarlyStopping("val", patience=4), each_epoch()
    gradual = GradualUnfreeze(STAGES, monitor="val", patience=2, verbose=False)
    fit(Net(metrics=metrics), [stopping, gradual, seen], epochs=9)
    assert seen.seen == ["h"] * 3 + ["hm"] * 3 + ["hms"] * 2


def test_a_second_fit_starts_afresh_from_the_original_flags() -> None:
    model = Net(metrics=[1.0] * 20)
    model.stem[0].weight.requires_grad_(False)
    seen = each_epoch()
    callbacks = [
        GradualUnfreeze(STAGES, monitor="val", patience=1, warmup_steps=3, verbose=False),
        FreezeLayers("head.bias", 1, 2),
        BatchNormEval(),
        seen,
    ]
    for _ in range(3):
        before = trainable(model)
        fit(model, callbacks, epochs=5)
        assert trainable(model) == before
        assert len(before) == 7
    assert seen.seen == ["h", "h", "hm", "hm", "hms"] * 3


def test_one_trainer_may_fit_again_and_go_on() -> None:
    model, seen = Net(), each_epoch()
    running = trainer([GradualUnfreeze(STAGES, verbose=False), seen], 2)
    with pytest.warns(UserWarning, match="never unfrozen: stem"):
        running.fit(model, Batches(), Batches(1))
    running.fit_loop.max_epochs = 4
    running.fit(model, Batches(), Batches(1))
    assert seen.seen == ["h", "hm", "hms", "hms"]
    assert len(trainable(model)) == 8


def test_validate_and_test_between_two_fits_change_nothing() -> None:
    model = Net()
    running = trainer([GradualUnfreeze(STAGES, verbose=False), BatchNormEval(), FreezeLayers("mid")], 3)
    running.fit(model, Batches(), Batches(1))
    before = tensors(model)
    running.validate(model, Batches(1), verbose=False)
    running.test(model, Batches(1), verbose=False)
    running.predict(model, Batches(1))
    assert not moved(before, tensors(model))
    assert len(trainable(model)) == 8
    assert all(module.training for module in model.modules())


def test_a_checkpoint_given_to_validate_test_and_predict_changes_nothing_else(tmp_path: Any) -> None:
    def callbacks() -> list[Any]:
        return [GradualUnfreeze(STAGES, verbose=False), BatchNormEval(affine="freeze"), FreezeLayers("mid", 1)]

    model, other = Net(), Net()
    saved = Spy(
        "on_train_epoch_end", lambda running, _: running.save_checkpoint(tmp_path / f"{running.current_epoch}.ckpt")
    )
    fit(model, [*callbacks(), saved])
    running = trainer(callbacks())
    for how in (running.validate, running.test):
        how(other, Batches(1), ckpt_path=tmp_path / "1.ckpt", verbose=False)
    running.predict(other, Batches(1), ckpt_path=tmp_path / "2.ckpt")
    assert not moved(tensors(model), tensors(other))
    assert len(trainable(other)) == 8
    assert not any(map(is_held, other.modules()))


CALLBACKS: list[Any] = [
    lambda: GradualUnfreeze(
        ["head", ["mid", "!mid.0"], Stage("late", ["stem"])], monitor="val", restore_best=True, verbose=False
    ),
    lambda: FreezeLayers("mid", 1, 2, unit="step", optimizer_state="cpu"),
    lambda: LayerwiseLR(0.5, {"mid": 0.1}),
    lambda: BatchNormEval(when="frozen"),
]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["deepcopy", "pickle"]
)
def test_callbacks_survive_copying_before_after_and_during_a_fit(copied: Any) -> None:
    during = Spy(
        "on_train_batch_end", lambda running, _: copied([c for c in running.callbacks if isinstance(c, tuple(classes))])
    )
    classes = [GradualUnfreeze, FreezeLayers, LayerwiseLR, BatchNormEval]
    callbacks = copied([make() for make in CALLBACKS])
    fit(Net(metrics=[1.0] * 40), [*callbacks, during], epochs=9)
    ends = []
    for again in (during.seen[1], copied(callbacks), [make() for make in CALLBACKS]):
        model = Net(metrics=[1.0] * 40)
        torch.manual_seed(1)
        fit(model, again, epochs=9)
        ends.append(tensors(model))
    assert not moved(ends[0], ends[1])
    assert not moved(ends[0], ends[2])


def test_a_trainer_with_a_fit_behind_it_can_be_copied() -> None:
    running = fit(Net(), [GradualUnfreeze(STAGES, verbose=False)])
    copied = copy.deepcopy(running)
    assert len(copied.callbacks) == len(running.callbacks)


# ---- what is printed


def test_the_table_and_one_line_at_each_change_are_printed(capsys: Any) -> None:
    model = Net()
    model.mid[1].weight.requires_grad_(False)
    fit(model, [GradualUnfreeze(STAGES), LayerwiseLR(0.5), FreezeLayers("head.bias", 2)])
    printed = capsys.readouterr().out
    for word in ("head", "mid", "stem", "epoch 2", "FreezeLayers", "you, before the fit", "2.50e-02"):
        assert word in printed
    lines = [line for line in printed.splitlines() if re.match(r"epoch \d+, step \d+: ", line)]
    assert [line.split(";")[0] for line in lines] == ["epoch 1, step 2: unfrozen mid", "epoch 2, step 4: unfrozen stem"]


def test_nothing_is_printed_on_request(capsys: Any) -> None:
    fit(Net(), [GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(0.5), FreezeLayers("head.bias", 2)])
    assert "lightning_freeze" not in capsys.readouterr().out


def test_a_model_may_bring_the_callbacks_itself() -> None:
    class Brings(Net):
        def configure_callbacks(self) -> Any:
            return [GradualUnfreeze(STAGES, verbose=False)]

    seen = each_epoch()
    fit(Brings(), [seen])
    assert seen.seen == ["h", "hm", "hms"]


@pytest.mark.parametrize(
    "bar",
    [
        TQDMProgressBar,
        pytest.param(RichProgressBar, marks=pytest.mark.skipif(BEFORE_2_6, reason="its bar breaks with today's rich")),
    ],
)
def test_table_and_changes_are_printed_beside_a_progress_bar(bar: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Net(), [bar(), GradualUnfreeze(STAGES)], enable_progress_bar=True)
    printed = capsys.readouterr().out
    assert printed.count("lightning_freeze: Net, ") == 1
    assert printed.count("epoch 1, step 2: unfrozen mid; ") == 1


def test_a_loss_of_frozen_parameters_alone_gets_a_sentence() -> None:
    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = torch.nn.Linear(4, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.other(batch[0]).sum()

    with pytest.raises(PlanError, match=r"depends on nothing that trains in epoch 0, step 0: .* parameters are frozen"):
        fit(Other(), [GradualUnfreeze(["head", ["other", "mid", "stem"]], verbose=False)])
