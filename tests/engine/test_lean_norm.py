"""BatchNorm that saves no input: equal to plain eval mode in every other respect."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import STAGES, Net, Spy, fit, tensors
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_freeze import BatchNormEval, GradualUnfreeze
from lightning_freeze.engine.lean_norm import can_be_lean, is_lean, make_lean, make_plain

SHAPES = {
    "1d": (nn.BatchNorm1d, (5, 3)),
    "1d, three axes": (nn.BatchNorm1d, (5, 3, 4)),
    "2d": (nn.BatchNorm2d, (5, 3, 4, 4)),
    "3d": (nn.BatchNorm3d, (5, 3, 2, 2, 2)),
    "Sync": (nn.SyncBatchNorm, (5, 3, 4, 4)),
}


def layer(kind: Any = nn.BatchNorm2d, affine: bool = True, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    made = kind(3, affine=affine, dtype=dtype)
    for value in [*made.parameters(), made.running_mean, made.running_var]:
        nn.init.uniform_(value, 0.5, 1.5)
    return made.eval().requires_grad_(False)


def lean(plain: nn.Module) -> Any:
    twin = copy.deepcopy(plain)
    make_lean(twin)
    assert is_lean(twin)
    return twin


def saved_bytes(run: Callable[[], Any]) -> int:
    found: list[int] = []
    with saved_tensors_hooks(lambda tensor: (found.append(tensor.numel()), tensor)[1], lambda tensor: tensor):
        run()
    return sum(found)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_outputs_and_gradients_are_those_of_plain_eval_mode_and_no_input_is_saved(kind: str, affine: bool) -> None:
    cls, shape = SHAPES[kind]
    plain = layer(cls, affine)
    if cls is nn.SyncBatchNorm:  # torch's own refuses the CPU where it can, also in eval mode on some versions
        plain = layer(nn.BatchNorm2d, affine)
    twin = lean(layer(cls, affine))
    inputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(shape, dtype=torch.float64)
    found = [
        (out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)) for out in (plain(inputs), twin(inputs))
    ]
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(twin, inputs)
    assert torch.autograd.gradgradcheck(twin, inputs)
    assert saved_bytes(lambda: twin(inputs)) == 3
    assert saved_bytes(lambda: layer(nn.BatchNorm2d if cls is nn.SyncBatchNorm else cls)(inputs)) > inputs.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("autocast", [True, False])
def test_narrow_types_and_autocast_give_the_type_and_the_accuracy_of_torch(dtype: torch.dtype, autocast: bool) -> None:
    plain = layer(dtype=torch.float32)
    exact = layer()(inputs := torch.randn(4, 3, 5, 5, dtype=torch.float64)).float()
    narrow = inputs.to(dtype)
    with torch.autocast("cpu", enabled=autocast, dtype=torch.bfloat16):
        mine, theirs = lean(plain)(narrow), plain(narrow)
    assert mine.dtype == theirs.dtype == dtype
    assert (mine - exact).abs().max() <= 1.01 * (theirs - exact).abs().max() + 1e-6


def test_channels_last_stays() -> None:
    inputs = torch.randn(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert lean(layer())(inputs).is_contiguous(memory_format=torch.channels_last)


def test_names_and_classes_stay_and_everything_can_be_undone() -> None:
    class Mine(nn.BatchNorm2d):
        pass

    for cls in (nn.BatchNorm2d, Mine, nn.SyncBatchNorm):
        twin = lean(layer(cls))
        assert isinstance(twin, cls)
        assert type(twin).__name__ == cls.__name__
        assert repr(twin) == repr(layer(cls))
        assert twin.state_dict().keys() == layer(cls).state_dict().keys()
        make_lean(twin)  # twice is once
        make_plain(twin)
        make_plain(twin)
        assert type(twin) is cls
        assert not is_lean(twin)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_is_lean_too_and_independent(copied: Callable[[Any], Any]) -> None:
    twin = lean(layer())
    other = copied(twin)
    assert type(other) is type(twin)
    make_plain(other)
    assert type(other) is nn.BatchNorm2d
    assert is_lean(twin)
    assert torch.equal(other.running_mean, twin.running_mean)


def test_a_layer_that_trains_after_all_computes_as_torch_does() -> None:
    twin, inputs = lean(layer()), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    twin.weight.requires_grad_(True)
    twin(inputs).square().sum().backward()
    assert twin.weight.grad is not None
    before = twin.running_mean.clone()
    twin.train()(inputs)
    assert not torch.equal(before, twin.running_mean)
    with pytest.raises(ValueError, match="expected 4D input"):
        lean(layer())(inputs[0])


def test_layers_with_a_forward_of_their_own_and_others_are_left_alone() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    shadowed = nn.BatchNorm2d(3)
    shadowed.forward = lambda inputs: inputs  # type: ignore[method-assign]
    others = [Own(3), shadowed, nn.LazyBatchNorm2d(), nn.BatchNorm2d(3, track_running_stats=False), nn.LayerNorm(3)]
    others.append(nn.InstanceNorm2d(3, affine=True, track_running_stats=True))
    for one in others:
        before = type(one)
        make_lean(one)
        assert not can_be_lean(one)
        assert type(one) is before


# ---- in a run


def lean_layers(_: Any, module: nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if is_lean(part)}


def run(*callbacks: Any) -> tuple[list[set[str]], Net]:
    module, seen = Net(), Spy("on_train_batch_start", lean_layers)
    fit(module, [*callbacks, seen])
    assert not lean_layers(None, module)
    assert type(module.stem[1]) is nn.BatchNorm1d
    return seen.seen[::2], module


def test_frozen_layers_are_lean_while_they_are_frozen_and_held() -> None:
    stages = GradualUnfreeze(STAGES, verbose=False)
    both = {"stem.1", "mid.1"}
    assert run(stages, BatchNormEval(memory_efficient=True))[0] == [both, {"stem.1"}, set()]
    assert run(BatchNormEval(affine="freeze", memory_efficient=True))[0] == [both] * 3
    assert run(BatchNormEval("stem", affine="freeze", memory_efficient=True))[0] == [{"stem.1"}] * 3
    assert run(BatchNormEval(memory_efficient=True))[0] == [set()] * 3
    assert run(BatchNormEval(affine="freeze"))[0] == [set()] * 3


def test_training_goes_the_same_way() -> None:
    found = [tensors(run(BatchNormEval(affine="freeze", memory_efficient=efficient))[1]) for efficient in (False, True)]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


def test_the_class_is_put_back_when_the_fit_raises() -> None:
    def fail(*_: Any) -> None:
        assert is_lean(module.stem[1])
        raise RuntimeError("enough")

    module = Net()
    with pytest.raises(RuntimeError, match="enough"):
        fit(module, [BatchNormEval(affine="freeze", memory_efficient=True), Spy("on_train_batch_end", fail)])
    assert type(module.stem[1]) is nn.BatchNorm1d


def test_what_is_left_alone_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    class Own(nn.BatchNorm1d):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs)

    module = Net()
    module.mid[1] = Own(4)
    fit(module, [BatchNormEval(affine="freeze", memory_efficient=True)])
    assert "memory_efficient leaves 1 layers as they are" in capsys.readouterr().out
