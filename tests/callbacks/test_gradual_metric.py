"""The metric trigger in real runs: when a stage ends, and what comes back of its best moment."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import (
    STAGES,
    Batches,
    Net,
    NeverTrains,
    Spy,
    each_epoch,
    fit,
    moved,
    tensors,
    trainer,
)

from lightning_freeze import FreezeAudit, FreezeLayers, GradualUnfreeze, PlanError


def metric_run(metrics: list[float], epochs: int, **options: Any) -> list[str]:
    names = ("val_check_interval", "check_val_every_n_epoch", "steps")
    running = {name: options.pop(name) for name in names if name in options}
    seen = each_epoch()
    fit(
        Net(metrics=metrics),
        [GradualUnfreeze(STAGES, monitor="val", verbose=False, **options), seen],
        epochs=epochs,
        **running,
    )
    return seen.seen


def test_a_stage_ends_after_patience_checks_without_improvement() -> None:
    assert metric_run([5, 4, 4, 4, 9, 8, 8, 8, 0], 9, patience=2) == ["h"] * 4 + ["hm"] * 4 + ["hms"]


def test_mode_max_and_min_delta() -> None:
    metrics = [1.0, 2.0, 2.5, 3.0, 3.2, 0.0, 0.0, 0.0, 0.0]
    assert metric_run(metrics, 9, patience=2, mode="max", min_delta=1.0) == ["h"] * 5 + ["hm"] * 3 + ["hms"]


def test_a_stage_ends_after_its_most_epochs_at_the_latest() -> None:
    metrics = [float(10 - k) for k in range(8)]
    assert metric_run(metrics, 6, max_epochs_per_stage=2) == ["h", "h", "hm", "hm", "hms", "hms"]
    assert metric_run([1.0] * 8, 5, patience=1, max_epochs_per_stage=3) == ["h", "h", "hm", "hm", "hms"]


def test_each_of_several_validations_in_an_epoch_counts_and_a_trigger_waits_for_the_next_epoch() -> None:
    metrics = [1.0, 1.0, 1.0, 0.1, 1.0, 1.0, 1.0, 1.0, *[1.0] * 8]
    assert metric_run(metrics, 4, patience=2, val_check_interval=1, steps=4) == ["h", "hm", "hms", "hms"]


def test_validation_each_second_epoch_counts_as_one_check() -> None:
    assert metric_run([1.0] * 9, 9, patience=1, check_val_every_n_epoch=2) == ["h"] * 4 + ["hm"] * 4 + ["hms"]


def test_sanity_checking_is_no_check() -> None:
    seen = each_epoch()
    gradual = GradualUnfreeze(["head", "mid"], monitor="val", patience=1, verbose=False)
    fit(Net(metrics=[9.0] * 9), [gradual, seen], num_sanity_val_steps=2)  # the loss of the sanity check is lower
    assert seen.seen == ["h", "h", "hm"]


def test_a_metric_that_is_not_logged_is_named_beside_those_that_are() -> None:
    with pytest.raises(PlanError, match=r"monitor='acc' is not among the metrics.*\n  Logged: val\n.*self\.log\('acc'"):
        fit(Net(), [GradualUnfreeze(STAGES, monitor="acc", verbose=False)])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_metric_trigger_without_validation_is_refused_at_setup() -> None:
    gradual = GradualUnfreeze(STAGES, monitor="val")
    with pytest.raises(PlanError, match="monitor='val' is checked after each validation, and this run has none"):
        trainer([gradual]).fit(NeverTrains(), Batches())
    with pytest.raises(PlanError, match="this run has none"):
        fit(NeverTrains(), [gradual], limit_val_batches=0)


class Counting(Net):
    """A buffer that code replaces by assignment, as a moving average would be."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("average", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.average = self.average + 1
        return super().training_step(batch, batch_idx)


class History(pl.Callback):
    """Weights, buffers and optimizer state of the parameters that have one, after each validation and epoch start."""

    def __init__(self) -> None:
        self.ends: list[dict[str, torch.Tensor]] = []
        self.starts: list[dict[str, torch.Tensor]] = []

    def _all(self, running: Any, module: Any) -> dict[str, torch.Tensor]:
        found = tensors(module)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for parameter, state in running.optimizers[0].state.items():
            found.update(
                {f"{names[id(parameter)]} {key}": torch.as_tensor(value).clone() for key, value in state.items()}
            )
        return found

    def on_validation_end(self, running: Any, module: Any) -> None:
        self.ends.append(self._all(running, module))

    def on_train_batch_start(self, running: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.starts.append(self._all(running, module))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adagrad], ids=["AdamW", "Adagrad"])
def test_the_best_weights_buffers_and_optimizer_state_come_back_and_training_goes_on(optimizer: Any) -> None:
    metrics = [3.0, 1.0, 2.0, 2.0, 7.0, 5.0, 6.0, 6.0, 1.0, 1.0, 1.0]
    model = Counting(lambda module: optimizer(module.parameters(), lr=0.05), metrics=metrics)
    history, seen = History(), each_epoch()
    gradual = GradualUnfreeze(STAGES, monitor="val", patience=2, restore_best=True, verbose=False)
    fit(model, [gradual, history, seen], epochs=10)
    assert seen.seen == ["h"] * 4 + ["hm"] * 4 + ["hms"] * 2
    for epoch, best in (
        (4, 1),
        (8, 5),
    ):  # the stage that starts with this epoch, and the check that was its last one's best
        start, end = history.starts[epoch], history.ends[best]
        assert not moved(end, {**start, **{key: end[key] for key in end.keys() - start.keys()}})
        assert not {key for key in start.keys() - end.keys() if "mid" not in key and "stem" not in key}
        assert moved(history.ends[epoch - 1], end) >= {"head.weight", "head.weight step", "average"}
    for epoch in (1, 2, 3, 5, 6, 7, 9):  # nothing comes back in between
        assert not moved(history.ends[epoch - 1], history.starts[epoch])
    assert moved(history.starts[9], history.ends[9]) >= {
        "head.weight",
        "mid.0.weight",
        "stem.0.weight",
        "stem.1.running_mean",
    }


def test_the_best_weights_of_a_stage_come_back_after_its_most_epochs_too() -> None:
    history = History()
    gradual = GradualUnfreeze(["head", "mid"], monitor="val", max_epochs_per_stage=3, restore_best=True, verbose=False)
    fit(Net(metrics=[1.0, 2.0, 3.0, 4.0]), [gradual, history], epochs=4)
    assert not moved(history.ends[0], history.starts[3])


@pytest.mark.parametrize("placement", ["keep", "cpu", "drop"])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adagrad], ids=["AdamW", "Adagrad"])
@pytest.mark.parametrize(("start", "stop"), [(3, None), (3, 5), (0, 3), (2, 3)])
def test_the_best_weights_come_back_where_another_callback_freezes_or_unfreezes_meanwhile(
    start: int, stop: int | None, optimizer: Any, placement: Any
) -> None:
    model = Net(lambda module: optimizer(module.parameters(), lr=0.05), metrics=[3.0, 2.0, 1.0, *[2.0] * 9])
    history = History()
    saved = Spy("on_train_batch_end", lambda running, _: running.optimizers[0].state_dict())
    gradual = GradualUnfreeze([["head", "mid"], "stem"], monitor="val", patience=2, restore_best=True, verbose=False)
    freeze = FreezeLayers("mid", start, stop, optimizer_state=placement, verbose=False)
    fit(model, [gradual, freeze, history, saved, FreezeAudit(verbose=False)], epochs=8)
    best, restored = history.ends[2], history.starts[5]
    assert not moved({key: best[key] for key in tensors(model)}, restored)
    kept = {key for key in best if "mid" not in key or (placement != "drop" and start == 3 and stop == 5)}
    assert not moved({key: best[key] for key in kept}, restored)
    assert len(saved.seen) == 16


def test_without_restore_best_nothing_comes_back() -> None:
    history = History()
    fit(
        Net(metrics=[1.0, 2.0, 3.0, 4.0]),
        [GradualUnfreeze(["head", "mid"], monitor="val", patience=1, verbose=False), history],
        epochs=4,
    )
    assert all(not moved(end, start) for end, start in zip(history.ends, history.starts[1:], strict=False))
