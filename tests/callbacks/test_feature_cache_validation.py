"""Validation within a fit is served from what training has kept: bits, flags and writes are as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cached_models import Model, Rows, Tally, frozen
from helpers import tensors, trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_freeze import FeatureCache


class Calls(nn.Linear):
    """Counts its calls out of sight of the cache, and without a look at whether gradients are on."""

    def forward(self, inputs: Tensor) -> Tensor:
        Tally.seen.setdefault(-id(self), []).append(len(inputs))
        return super().forward(inputs)


class Validated(Model):
    """Looks at what validation gives."""

    writes = False

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True))  # type: ignore[assignment]
        self.mid = nn.Sequential(Calls(16, 16), nn.LayerNorm(16))  # type: ignore[assignment]
        Tally.seen[-id(self.mid[0])] = []  # type: ignore[index]
        self.computed = 0

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        calls = Tally.seen[-id(self.mid[0])]  # type: ignore[index]
        inputs, before = batch[0], sum(calls)
        out = self.features(inputs)
        float(out.sum())
        self.computed += sum(calls) - before
        self.losses += [float(out.is_inference()), float(out._is_view()), *map(float, out.stride())]
        self.log("val", out.mean())
        if self.writes:
            view = out[:, :4]
            view.mul_(2)
            self.losses.append(out.double().sum().item())
            inputs.add_(1)
            self.losses.append(self.mid(self.stem(inputs)).double().sum().item())
            inputs.sub_(1)
        self.losses.append(self.head(out).double().sum().item())
        return out


class Writing(Validated):
    writes = True


def fit(make: Any, cache: list[Any], inference_mode: bool, callbacks: tuple[Any, ...] = ()) -> Any:
    torch.manual_seed(3)
    model = make()
    loader = torch.utils.data.DataLoader(Rows(), batch_size=8, shuffle=True)
    validation = torch.utils.data.DataLoader(Rows(), batch_size=8)
    options: dict[str, Any] = {"inference_mode": inference_mode}
    trainer([*cache, *frozen(), *callbacks], 6, **options).fit(model, loader, validation)
    return model


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("make", [Validated, Writing])
def test_validation_is_as_without_and_computes_less(make: Any, inference_mode: bool) -> None:
    plain = fit(make, [], inference_mode)
    cached = fit(make, [FeatureCache(verbose=False)], inference_mode)
    assert plain.losses == cached.losses
    assert all(torch.equal(value, tensors(cached)[name]) for name, value in tensors(plain).items())
    assert "validation_step" not in vars(cached)
    if make is Validated:
        assert cached.computed < 0.5 * plain.computed


class Swapped(Callback):
    """Other weights for the length of a validation, as with averaged weights."""

    def on_validation_epoch_start(self, _: Any, pl_module: Any) -> None:
        for parameter in pl_module.parameters():
            parameter.data.mul_(2)

    def on_validation_epoch_end(self, _: Any, pl_module: Any) -> None:
        for parameter in pl_module.parameters():
            parameter.data.div_(2)


def test_weights_that_are_exchanged_for_a_validation_are_found() -> None:
    plain = fit(Validated, [], True, (Swapped(),))
    cached = fit(Validated, [FeatureCache(verbose=False)], True, (Swapped(),))
    assert plain.losses == cached.losses
    assert all(torch.equal(value, tensors(cached)[name]) for name, value in tensors(plain).items())
