"""What was frozen before the fit: refused as a whole stage, remarked in part, unfrozen and given back with `thaw`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import STAGES, Batches, Net, NeverTrains, Spy, each_epoch, fit, tensors, trainable, trainer
from torch import nn

from lightning_freeze import (
    FreezeAudit,
    FreezeLayers,
    GradualUnfreeze,
    LayerwiseLR,
    PlanError,
    ProgressiveFreeze,
    RotatingUnfreeze,
)


class FrozenBefore(Net):
    """The commonest line of transfer learning."""

    def __init__(self, *args: Any, parts: str = "stem mid", **options: Any) -> None:
        super().__init__(*args, **options)
        for name, parameter in self.named_parameters():
            if name.startswith(tuple(parts.split())):
                parameter.requires_grad = False  # as in a script

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        torch.manual_seed(self.global_step)  # dropout is alike in runs that are compared
        return super().training_step(batch, batch_idx)


class NeverTrainsFrozen(FrozenBefore):
    training_step = NeverTrains.training_step


def everything(module: nn.Module) -> Iterable[Any]:
    return module.parameters()


def what_trains(module: nn.Module) -> Iterable[Any]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def two_groups(module: nn.Module) -> Iterable[Any]:
    matrices = [p for p in what_trains(module) if p.dim() > 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": [p for p in what_trains(module) if p.dim() == 1]}]


def adamw(of: Callable[[nn.Module], Iterable[Any]]) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda module: torch.optim.AdamW(of(module), lr=0.05)


@pytest.mark.parametrize("callback", [GradualUnfreeze, RotatingUnfreeze, ProgressiveFreeze])
def test_a_named_stage_with_nothing_to_train_is_refused_with_the_line_to_delete(callback: Any) -> None:
    with pytest.raises(PlanError, match="stage 'mid' has nothing to train: its 3 parameters") as caught:
        fit(NeverTrainsFrozen(parts="mid"), [callback(STAGES)])
    said = str(caught.value)
    assert "Delete 'parameter.requires_grad = False' (test_frozen_before.py, line " in said
    assert "pass thaw=True" in said


def test_a_stage_that_another_policy_thaws_is_not_refused() -> None:
    module = FrozenBefore(parts="mid")
    thaws = GradualUnfreeze([["head", "mid", "stem"]], thaw=True, verbose=False)
    fit(module, [thaws, GradualUnfreeze(STAGES, verbose=False), spy := each_epoch()])
    assert spy.seen == ["h", "hm", "hms"]


def test_a_stage_frozen_in_part_trains_in_part_with_a_remark(capsys: pytest.CaptureFixture[str]) -> None:
    module = FrozenBefore(parts="mid.0")
    seen = each_epoch()
    fit(module, [GradualUnfreeze(STAGES), seen], epochs=3)
    assert "not trained with their stage: 1 of 3 in 'mid' parameters" in " ".join(capsys.readouterr().out.split())
    assert seen.seen == ["h", "hm", "hms"]
    fit(Net(), [GradualUnfreeze(STAGES)], epochs=3)
    assert "Frozen before the fit" not in capsys.readouterr().out


def test_discovered_stages_may_be_frozen_before_the_fit() -> None:
    fit(FrozenBefore(), [GradualUnfreeze(3, verbose=False), seen := each_epoch()])
    assert set(seen.seen) == {"h"}


@pytest.mark.parametrize("of", [everything, what_trains])
def test_a_thawed_run_ends_with_the_bits_of_a_run_in_which_nothing_was_frozen_before(of: Any) -> None:
    callbacks = lambda **options: [  # noqa: E731
        GradualUnfreeze(STAGES, verbose=False, warmup_steps=2, **options), LayerwiseLR(0.5), FreezeAudit(),
        FreezeLayers("mid", 3, 4, optimizer_state="cpu"),
    ]  # fmt: skip
    expected, module = FrozenBefore(adamw(everything), parts="nothing"), FrozenBefore(adamw(of))
    fit(expected, callbacks(), epochs=5)
    fit(module, [*callbacks(thaw=True), seen := each_epoch()], epochs=5)
    assert seen.seen == ["h", "hm", "hms", "hs", "hms"]
    found = tensors(module)
    assert all(torch.equal(value, found[name]) for name, value in tensors(expected).items())


def test_after_the_fit_what_was_thawed_is_frozen_again_and_without_a_gradient() -> None:
    module = FrozenBefore()
    fit(module, [GradualUnfreeze(STAGES, thaw=True, verbose=False)])
    assert trainable(module) == ["head.weight", "head.bias"]
    assert [name for name, p in module.named_parameters() if p.grad is not None and not p.requires_grad] == []


def test_a_first_stage_frozen_before_the_fit_thaws_at_once() -> None:
    module = FrozenBefore(adamw(what_trains), parts="stem head")
    fit(module, [GradualUnfreeze(STAGES, thaw=True, verbose=False), seen := each_epoch()])
    assert seen.seen == ["h", "hm", "hms"]


def test_what_thaws_joins_the_group_of_its_kind() -> None:
    module = FrozenBefore(adamw(two_groups))
    running = fit(module, [GradualUnfreeze(STAGES, thaw=True, verbose=False), FreezeAudit()])
    decays = {name: group["weight_decay"] for group in running.optimizers[0].param_groups
              for name, p in module.named_parameters() if any(p is one for one in group["params"])}  # fmt: skip
    assert {name for name, decay in decays.items() if decay == 0.1} == {"head.weight", "mid.0.weight", "stem.0.weight"}
    assert len(decays) == len(dict(module.named_parameters()))


def test_without_thaw_what_is_in_no_stage_and_frozen_before_stays_so() -> None:
    module = FrozenBefore(parts="stem")
    fit(module, [GradualUnfreeze(["head", "mid"], thaw=True, verbose=False), seen := each_epoch()])
    assert seen.seen == ["h", "hm", "hm"]


@pytest.mark.parametrize("callback", [RotatingUnfreeze(STAGES, 1, every_n_train_steps=2, order="descending", thaw=True),
                                      ProgressiveFreeze(STAGES, (0.3, 1.0), thaw=True)])  # fmt: skip
def test_other_staged_callbacks_thaw_too(callback: Any) -> None:
    module = FrozenBefore(adamw(what_trains))
    fit(module, [callback, FreezeAudit(), seen := each_epoch()])
    assert set("".join(seen.seen)) == set("hms")
    assert trainable(module) == ["head.weight", "head.bias"]


@pytest.mark.parametrize("options", [{}, {"monitor": "val", "max_epochs_per_stage": 1, "restore_best": True}])
def test_a_thawed_run_resumes_bit_for_bit(options: Any, tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [GradualUnfreeze(STAGES, thaw=True, verbose=False, **options), FreezeAudit()]

    def save(running: Any, _: Any) -> None:
        running.save_checkpoint(tmp_path / f"{running.current_epoch}.ckpt")

    whole = FrozenBefore(adamw(what_trains))
    fit(whole, [*callbacks(), Spy("on_train_epoch_end", save)], epochs=4)
    for epoch in range(3):
        resumed = FrozenBefore(adamw(what_trains))
        trainer(callbacks(), 4).fit(resumed, Batches(2), Batches(1), ckpt_path=tmp_path / f"{epoch}.ckpt")
        found = tensors(resumed)
        assert all(torch.equal(value, found[name]) for name, value in tensors(whole).items()), epoch
