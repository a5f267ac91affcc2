"""Models that note in which mode their modules run in the forward passes of training."""

from __future__ import annotations

from typing import Any

from helpers import Net
from torch import Tensor, nn


class Watched(Net):
    """Notes, in the forward passes of training, which modules ran in eval mode: one set of names per epoch."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.in_eval: dict[int, set[str]] = {}
        self.in_train: dict[int, set[str]] = {}
        self.watch()

    def watch(self) -> None:
        for name, module in self.named_modules():
            if name and not any(module.children()):
                module.register_forward_hook(self._note(name))

    def _note(self, name: str) -> Any:
        def note(module: nn.Module, *_: Any) -> None:
            if self.trainer.training:
                found = self.in_train if module.training else self.in_eval
                found.setdefault(self.current_epoch, set()).add(name)

        return note

    def modes(self) -> list[set[str]]:
        """What ran in eval mode, per epoch; nothing may have run in both modes within one."""
        epochs = sorted({*self.in_eval, *self.in_train})
        assert all(self.in_eval.get(epoch, set()).isdisjoint(self.in_train.get(epoch, set())) for epoch in epochs)
        return [self.in_eval.get(epoch, set()) for epoch in epochs]


STEM, MID = ({f"{part}.{place}" for place in range(4)} for part in ("stem", "mid"))


class TrainsItself(Watched):
    """A module whose own hooks put everything back into train mode, as many do."""

    def on_train_start(self) -> None:
        self.train()

    def on_train_epoch_start(self) -> None:
        self.train()

    def on_train_batch_start(self, *_: Any) -> None:
        for module in self.modules():
            module.train(True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.train()
        return super().training_step(batch, batch_idx)

    def on_validation_model_train(self) -> None:
        self.train()


class Chain(Watched):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        del self.stem, self.mid
        self.body = nn.Sequential(*layers)
        self.watch()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))
