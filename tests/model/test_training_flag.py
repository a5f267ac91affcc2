"""Which modules must stay in train mode when they are frozen: those whose own forward branches on `self.training`."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_freeze.model.training_flag import needs_train_mode


class _If(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x * 2
        return x


class _ElseIf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 1:
            x = x + 2
        elif not self.training:
            x = x + 1
        return x


class _Assert(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert self.training or x.dim() == 2
        return x


class _While(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while self.training and x.sum() > 1:
            x = x / 2
        return x


class _Conditional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class _Losses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        loss = x.sum() if self.training else 0.0
        return x + loss


class _Boolean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        noisy = self.training and x.dim() == 2
        return F.dropout(x, 0.5, noisy)


class _Copied(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flag = self.training
        if flag:
            return x * 2
        return x


class _Asked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool(self.training) else x + 1


class _Comprehension(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sum(row for row in x if self.training) + x


class _Multiplied(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.training


class _Helper(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self._outputs(x)

    def _outputs(self, x: Tensor) -> Tensor:
        if self.training:
            return x * 2
        return x


class _Inherited(_If):
    pass


class _Super(_If):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def _wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def _hiding(function: Any) -> Any:
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class _Decorated(nn.Module):
    @_wrapped
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class _Hidden(nn.Module):
    @_hiding
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class _OtherName(nn.Module):
    def forward(this, x: Tensor) -> Tensor:  # noqa: N805
        return x * 2 if this.training else x


BRANCHING = [
    _If, _ElseIf, _Assert, _While, _Conditional, _Losses, _Boolean, _Copied, _Asked, _Comprehension, _Multiplied,
    _Helper, _Inherited, _Super, _Decorated, _Hidden, _OtherName,
]  # fmt: skip


class _Passing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=self.training)


class _PassingByPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class _PassingACopy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        training = self.training
        return F.dropout(x, 0.5, training)


class _PassingWithin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return F.dropout(x, 0.5, training=self.training)
        return x


class _Rate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)


class _RateTheOtherWay(nn.Module):
    dropout = 0.5

    def forward(self, x: Tensor) -> Tensor:
        rate = 0.0 if not self.training else self.dropout
        return F.scaled_dot_product_attention(x, x, x, None, rate)


class _Checkpointing(nn.Module):
    gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            x.requires_grad = True
        return F.dropout(x, 0.5, training=self.training)


class _Without(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:  # a word in a comment, self.training, is no use of it
            return x
        return x + 1


class _Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = _If()

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x)


class _SuperThatPasses(_Passing):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class DropBlock(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand_like(x) > 0.5)


class _Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_var", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_var.mul_(0.9).add_(0.1 * x.var(0))
        return x / self.running_var.sqrt()


EVAL = [
    _Passing, _PassingByPlace, _PassingACopy, _PassingWithin, _Rate, _RateTheOtherWay, _Without, _Parent,
    _SuperThatPasses, _Checkpointing, DropBlock, _Statistics,
]  # fmt: skip


@pytest.mark.parametrize("cls", BRANCHING)
def test_a_module_whose_own_forward_branches_on_the_flag_needs_train_mode(cls: type[nn.Module]) -> None:
    assert needs_train_mode(cls())


@pytest.mark.parametrize("cls", EVAL)
def test_a_module_that_passes_the_flag_on_or_is_made_for_eval_mode_does_not(cls: type[nn.Module]) -> None:
    assert not needs_train_mode(cls())


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(2), nn.InstanceNorm1d(2, track_running_stats=True), nn.Dropout(), nn.AlphaDropout(),
        nn.FeatureAlphaDropout(), nn.LSTM(2, 2), nn.GRUCell(2, 2), nn.MultiheadAttention(2, 1, dropout=0.5), nn.RReLU(),
        nn.Sequential(nn.Linear(2, 2)), nn.LayerNorm(2),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_torch_own_layers_are_made_for_eval_mode(module: nn.Module) -> None:
    assert not needs_train_mode(module)


def _without_source(body: str) -> nn.Module:
    space: dict[str, object] = {"nn": nn, "F": F}
    exec(f"class Made(nn.Module):\n    def forward(self, x):\n        {body}", space)
    return space["Made"]()  # type: ignore[operator]


def test_without_source_a_forward_that_mentions_the_flag_counts_as_branching() -> None:
    assert needs_train_mode(_without_source("return x if self.training else x + 1"))
    assert needs_train_mode(_without_source("return F.dropout(x, 0.5, self.training)"))
    assert not needs_train_mode(_without_source("return x + 1"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_forward_that_is_no_python_counts_as_branching() -> None:
    assert needs_train_mode(torch.jit.script(nn.Linear(2, 2)))


def test_a_forward_of_the_instance_is_the_one_that_counts() -> None:
    module = nn.Linear(2, 2)
    module.forward = functools.partial(_If.forward, module)  # type: ignore[method-assign]
    assert needs_train_mode(module)
