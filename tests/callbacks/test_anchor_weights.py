"""AnchorWeights: each step ends where the formula says, whatever the optimizer and whatever is beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from branches import TASKS, TwoTasks
from branches import Batches as Tasks
from helpers import STAGES, Batches, Net, Spy, fit, tensors, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import SGD, AdamW, RMSprop

from lightning_freeze import AnchorWeights, GradualUnfreeze, LayerwiseLR, PlanError, TaskFreeze

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
LR, STRENGTH = 0.05, 2.0


def smooth(make: Any) -> Net:
    """Without Dropout, so that the loop by hand sees the same gradients."""
    model = Net(make)
    model.stem[3], model.mid[3] = nn.Identity(), nn.Identity()
    return model


def by_hand(make: Any, weights: dict[str, float], steps: int, accumulate: int = 1) -> dict[str, torch.Tensor]:
    """A plain loop: the update, then w + weight * (start - w)."""
    model = smooth(make)
    optimizer = model.configure_optimizers()
    starts = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(steps):
        optimizer.zero_grad()
        for k in range(accumulate):
            batch = Batches(4).all[(step * accumulate + k) % 4]
            (model.training_step(batch, 0) / accumulate).backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if weight := next((w for prefix, w in weights.items() if name.startswith(prefix)), 0.0):
                    parameter += weight * (starts[name] - parameter)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_close(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-6, msg=name)


MAKE = {
    "SGD": lambda m: SGD(m.parameters(), lr=LR, momentum=0.9),
    "AdamW": lambda m: AdamW(m.parameters(), lr=LR),
    "AdamW, fused": lambda m: AdamW(m.parameters(), lr=LR, fused=True),
    "AdamW, a tensor as rate": lambda m: AdamW(m.parameters(), lr=torch.tensor(LR)),
    "RMSprop": lambda m: RMSprop(m.parameters(), lr=LR / 10),
}


@pytest.mark.parametrize("device", ["cpu", "model"])
@pytest.mark.parametrize("name", MAKE)
def test_each_step_ends_a_part_of_the_way_back_to_the_start(name: str, device: Any) -> None:
    rate = LR / 10 if name == "RMSprop" else LR
    model = smooth(MAKE[name])
    fit(model, [AnchorWeights(STRENGTH, ["*", "!head"], device=device, verbose=False)], epochs=3, steps=4)
    weights = {"stem": rate * STRENGTH, "mid": rate * STRENGTH}
    assert_close(model, by_hand(MAKE[name], weights, steps=12))


def test_a_window_of_accumulation_is_pulled_once() -> None:
    model = smooth(MAKE["AdamW"])
    fit(model, [AnchorWeights(STRENGTH, verbose=False)], epochs=2, steps=4, accumulate_grad_batches=2)
    assert_close(model, by_hand(MAKE["AdamW"], {"": LR * STRENGTH}, steps=4, accumulate=2))


def test_deeper_stages_are_pulled_more_and_at_the_rate_they_have() -> None:
    model = smooth(MAKE["AdamW"])
    callbacks = [LayerwiseLR(multipliers={"mid": 0.3}), AnchorWeights(1.0, decay=0.5, stages=STAGES, verbose=False)]
    fit(model, callbacks, epochs=2, steps=4)

    def scaled(module: Any) -> Any:
        return AdamW(
            [
                {"params": getattr(module, stage).parameters(), "lr": LR * (0.3 if stage == "mid" else 1)}
                for stage in STAGES
            ]
        )

    weights = {"head": LR, "mid": 0.3 * LR * 2, "stem": LR * 4}
    assert_close(model, by_hand(scaled, weights, steps=8))


def test_the_rate_of_a_step_counts_with_its_warm_up_and_a_late_stage_starts_where_it_was() -> None:
    strengths = 1.0 / LR  # at the full rate, a weight of 1
    model, start = Net(MAKE["SGD"]), tensors(Net())
    distances: list[float] = []

    def distance(_: Any, module: Any) -> None:
        distances.append(float((module.mid[0].weight.detach() - start["mid.0.weight"]).abs().max()))

    gradual = GradualUnfreeze(STAGES, at=[0, 1, 2], warmup_steps=2, verbose=False)
    fit(
        model,
        [gradual, AnchorWeights(strengths, verbose=False), Spy("on_train_batch_end", distance)],
        epochs=3,
        steps=3,
    )
    assert distances[:3] == [0.0] * 3
    assert distances[3] > 0  # half of the rate
    assert distances[4:] == [0.0] * 5


def test_an_infinite_strength_freezes_to_the_bit_and_none_leaves_free() -> None:
    before = tensors(Net())
    fit(held := Net(MAKE["AdamW"]), [AnchorWeights(1e9, verbose=False)])
    assert all(torch.equal(p.detach(), before[name]) for name, p in held.named_parameters())
    found = []
    for callbacks in ([], [AnchorWeights(0, verbose=False)]):
        torch.manual_seed(1)
        fit(free := Net(MAKE["AdamW"]), callbacks)
        found.append(tensors(free))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_what_a_step_does_not_move_is_not_pulled() -> None:
    snapshots: list[dict[str, torch.Tensor]] = [tensors(TwoTasks())]
    spy = Spy("on_train_batch_end", lambda _, module: snapshots.append(tensors(module)))
    trainer([TaskFreeze(TASKS, verbose=False), AnchorWeights(0.5, verbose=False), spy], 1).fit(
        TwoTasks(), Tasks("abab")
    )
    for step, task in enumerate("abab"):
        other = TASKS["b" if task == "a" else "a"]
        moved = {name for name, value in snapshots[step + 1].items() if not torch.equal(value, snapshots[step][name])}
        assert moved
        assert not any(name.startswith(tuple(other)) for name in moved)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="torch has no scaler for the CPU")
def test_an_update_that_the_scaler_skips_pulls_nothing(fused: bool) -> None:
    class Overflows(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if self.global_step == 1 else loss

    seen: list[dict[str, torch.Tensor]] = []
    spy = Spy("on_train_batch_end", lambda _, module: seen.append(tensors(module)))
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    model = Overflows(lambda m: AdamW(m.parameters(), lr=LR, fused=fused))
    fit(model, [AnchorWeights(STRENGTH, verbose=False), spy], epochs=1, steps=3, plugins=[scaled])
    names = [name for name, _ in model.named_parameters()]
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in names)
    assert not all(torch.equal(seen[1][name], seen[2][name]) for name in names)


def test_a_resumed_run_is_pulled_to_the_start_of_the_first(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    def callbacks() -> list[Any]:
        return [GradualUnfreeze(STAGES, verbose=False), AnchorWeights(STRENGTH, verbose=False)]

    class Fixed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            torch.manual_seed(self.global_step)
            return super().training_step(batch, batch_idx)

    whole = trainer([*callbacks(), keeper], 4, enable_checkpointing=True)
    whole.fit(one := Fixed(MAKE["AdamW"]), Batches(3), Batches(1))
    for epoch in range(3):
        other = Fixed(MAKE["AdamW"])
        nn.init.zeros_(other.stem[0].weight)  # what it was built with does not matter
        trainer(callbacks(), 4).fit(other, Batches(3), Batches(1), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1}, "strength must be a number of at least 0"),
        ({"strength": float("inf")}, "strength must be a number"),
        ({"strength": 1, "decay": 0}, "decay must be greater than 0 and at most 1"),
        ({"strength": 1, "device": "gpu"}, "device must be one of 'cpu', 'model'"),
        ({"strength": 1, "patterns": []}, "patterns is empty"),
        ({"strength": 1, "stages": []}, "stages=\\[\\] is empty"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"AnchorWeights: .*{message}"):
        AnchorWeights(**options)
