"""An optimizer that has nothing to train for some epochs is named at the start, and a GAN's run goes through them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Batches, Net, each_epoch, fit, trainer
from torch import Tensor, nn

from lightning_freeze import FreezeAudit, FreezeLayers, GradualUnfreeze


class Gan(pl.LightningModule):
    """Skips the discriminator's part of a step while it is frozen, unless told not to."""

    def __init__(self, skips: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.discriminator = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        self.automatic_optimization = False
        self.skips = skips

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        of_generator, of_discriminator = self.optimizers()
        fake = self.generator(batch[0])
        self.toggle_optimizer(of_generator)
        of_generator.zero_grad()
        self.manual_backward(-self.discriminator(fake).mean())
        of_generator.step()
        self.untoggle_optimizer(of_generator)
        if not self.skips or any(p.requires_grad for p in self.discriminator.parameters()):
            self.toggle_optimizer(of_discriminator)
            of_discriminator.zero_grad()
            loss = self.discriminator(fake.detach()).mean() - self.discriminator(batch[0]).mean()
            self.manual_backward(loss)
            of_discriminator.step()
            self.untoggle_optimizer(of_discriminator)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.generator.parameters()), torch.optim.SGD(self.discriminator.parameters(), 0.1)


def run(module: Gan, *callbacks: Any, epochs: int = 4) -> Any:
    running = trainer([*callbacks], epochs)
    running.fit(module, Batches(2))
    return running


@pytest.mark.parametrize(
    ("callback", "epochs"),
    [
        (FreezeLayers("discriminator", stop=2), "epochs 0 to 1"),
        (FreezeLayers("discriminator", 3), "epoch 3"),
        (FreezeLayers("discriminator", 4, 8, unit="step"), "epoch 1"),  # of each optimizer one step per batch
        (GradualUnfreeze(["generator", "discriminator"], at=[0, 3]), "epochs 0 to 2"),
    ],
)
def test_an_optimizer_with_nothing_to_train_is_named_at_the_start_with_its_epochs(
    callback: Any, epochs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Gan()
    before = [p.detach().clone() for p in module.discriminator.parameters()]
    run(module, callback, FreezeAudit())
    said = " ".join(capsys.readouterr().out.split())
    if epochs:
        assert (
            f"Optimizer 1 (SGD, discriminator.0.weight and 3 more parameters) has nothing to train in {epochs}." in said
        )
    assert any(not torch.equal(a, b) for a, b in zip(before, module.discriminator.parameters(), strict=True))


def test_nothing_is_said_where_every_optimizer_trains_or_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    run(Gan(), FreezeLayers("discriminator.0", stop=2), epochs=3)
    fit(Net(), [FreezeLayers("stem", stop=2), each_epoch()])
    assert "has nothing to train in" not in capsys.readouterr().out


def test_asking_ahead_leaves_the_policies_as_they_were() -> None:
    module, seen = Gan(), []
    module.on_train_epoch_end = lambda: seen.append(module.discriminator[0].weight.requires_grad)  # type: ignore[method-assign]
    run(module, GradualUnfreeze(["generator", "discriminator"], at=[0, 2]))
    assert seen == [False, False, True, True]
