"""Random models and training steps: frozen modules wired at random, and steps that do something odd now and then."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_freeze.cache.memo import FrozenMemo
from lightning_freeze.cache.row_store import Storage

WIDTH, ROWS, BATCH = 8, 26, 6


class Block(nn.Sequential):
    def __init__(self, inplace: bool = True) -> None:
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=inplace))


class Counting(nn.Module):
    """Counts its calls, and acts on the count."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(WIDTH, WIDTH), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(inputs) * (1.0 if self.calls % 7 else 1.5)


class Keeping(nn.Module):
    """Keeps what an inner layer made."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kept: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        first = self.inner(inputs)
        self.kept = [*self.kept, first][-2:]
        return self.outer(first.tanh())


class Hooked(nn.Module):
    """A hook on an inner layer changes what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = nn.Linear(WIDTH, WIDTH), 0.0
        self.inner.register_forward_hook(self._look)

    def _look(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        self.seen += float(out.sum()) if self.training else 1.0
        return out * 2

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs).sigmoid()


class Several(nn.Module):
    """Returns a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: Tensor) -> Any:
        first = self.one(inputs).relu()
        return {"first": first, "rest": (self.other(first), first.mean(1, keepdim=True))}


class Masked(nn.Module):
    """Takes two tensors, one of them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.inner(inputs)
        return out if mask is None else out * mask


class Choosing(nn.Module):
    """Reads a value and takes one of two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Block(), Block(inplace=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.one(inputs) if bool(inputs[0, 0] > 0) else self.other(inputs)


class Across(nn.Module):
    """Rows hang on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.inner(inputs)
        return out - out.mean(0)


BLOCKS: list[Callable[[], nn.Module]] = [
    Block,
    Block,
    Block,
    lambda: nn.Linear(WIDTH, WIDTH),
    lambda: nn.Sequential(Block(), nn.Dropout(0.3), Block()),
    Counting,
    Keeping,
    Hooked,
    Several,
    Masked,
    Choosing,
    Across,
    lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)),
]


class Graph(nn.Module):
    """Frozen blocks, wired at random, and a head over some of what they make.

    Args:
        seed: of everything about it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.draw = random.Random(seed)
        count = self.draw.randint(2, 5)
        self.blocks = nn.ModuleList(self.draw.choice(BLOCKS)() for _ in range(count))
        if self.draw.random() < 0.3:
            self.blocks.append(self.blocks[0])
        self.position = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("shift", torch.randn(WIDTH))
        self.register_buffer("statistic", torch.zeros(WIDTH))
        for one in (*self.blocks, self):
            for parameter in one.parameters(recurse=one is not self):
                parameter.requires_grad_(False)
            one.eval()
        self.head, self.gate = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, WIDTH)
        self.wires = [self.draw.choice(WIRES) for _ in self.blocks]
        self.ends = self.draw.choice(ENDS)
        self.odd = self.draw.sample(ODD, self.draw.randint(0, 3))
        self.often = self.draw.choice([2, 3, 5, 11])
        self.queue: list[Any] = []
        self.logs: list[float] = []
        self.teacher = copy.deepcopy(self.blocks[0])
        self.step_number = 0

    def run_block(self, block: nn.Module, inputs: Tensor, mask: Tensor) -> Tensor:
        if isinstance(block, Masked):
            return block(inputs, mask=mask)
        out = block(inputs)
        return out if isinstance(out, Tensor) else out["rest"][0] + out["first"]

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        inputs, mask, labels = batch
        self.step_number += 1
        odd = [one for one in self.odd if self.step_number % self.often == self.often - 1 or one in ALWAYS]
        made = [inputs]
        for place, (block, wire) in enumerate(zip(self.blocks, self.wires, strict=True)):
            for one in odd:
                one(self, made, batch, place)
            made.append(wire(self, block, made, mask))
        out = self.ends(self, made)
        loss = nn.functional.cross_entropy(self.head(out), labels)
        for one in odd:
            loss = loss + one(self, made, batch, -1)
        self.logs.append(float(loss))
        return loss


WIRES: list[Any] = [
    lambda self, block, made, mask: self.run_block(block, made[-1], mask),
    lambda self, block, made, mask: self.run_block(block, made[-1], mask) + made[-1],
    lambda self, block, made, mask: self.run_block(block, made[-1] + self.position, mask) - self.shift,
    lambda self, block, made, mask: nn.functional.gelu(self.run_block(block, made[max(0, len(made) - 2)], mask)) * 0.5,
    lambda self, block, made, mask: self.run_block(block, made[-1], mask).clone().mul_(2).relu_(),
    lambda self, block, made, mask: torch.cat([self.run_block(block, made[-1], mask), made[0]], 1)[:, ::2],
    lambda self, block, made, mask: self.run_block(block, made[-1].view(-1, 2, 4).transpose(1, 2).flatten(1), mask),
    lambda self, block, made, mask: self.run_block(block, made[-1] * mask, mask),
    lambda self, block, made, mask: self.run_block(block, self.gate(made[-1]).detach(), mask),
]
ENDS: list[Any] = [
    lambda self, made: made[-1],
    lambda self, made: made[-1] + made[1],
    lambda self, made: self.gate(made[-1]) * made[-2],
    lambda self, made: torch.stack(made[1:]).mean(0),
    lambda self, made: nn.functional.softmax(made[-1], 1) @ self.gate.weight,
]


def nothing(made: list[Tensor]) -> Tensor:
    return torch.zeros(())


def reads(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1 and made[-1].mean().item() > 0:
        made[-1] = made[-1] * 1.25
    return nothing(made)


def writes_feature(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        made[-1].mul_(1.5)[:, 0].add_(1)
    return nothing(made)


def writes_view(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        made[-1].view(-1)[3] = 7.0
    if place == 2:
        view = made[-1][:, 1:3]
        view += 1
        made.append(made[-1] * view.mean(1, keepdim=True))
    return nothing(made)


def writes_input(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        batch[0].add_(0.5)
    return nothing(made)


def scales(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        made[-1] = made[-1] * (1 + self.step_number / 10)
    return nothing(made)


def queues(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place >= 0:
        return None
    self.queue = [*self.queue, made[-1], made[1].detach()][-4:]
    return sum(one.square().mean() for one in self.queue) * self.head.weight.mean()


def attributes(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place >= 0:
        return None
    before, self.last = getattr(self, "last", made[-1]), made[-1]
    return (before.mean() - made[-1].mean()) * self.head.bias.sum()


def copies(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place >= 0:
        return None
    copied = copy.deepcopy(self.blocks[0])
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.1)
    out = copied(batch[0])
    out = out["first"] if isinstance(out, dict) else out
    return out.mean() * self.head.weight.sum() + copy.deepcopy(made[-1]).mean()


def borrows(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place >= 0:
        return None
    block = self.blocks[0]
    weights = {name: value * (1 + 0.1 * self.step_number) for name, value in block.named_parameters()}
    out = torch.func.functional_call(block, weights, (batch[0],))
    out = out["first"] if isinstance(out, dict) else out
    return (self.gate(out) * made[-1]).mean()


def maps(self: Any, made: Any, batch: Any, place: int) -> Any:
    return torch.vmap(lambda row: (row * 2).sum())(made[-1]).mean() * self.head.bias.mean() if place < 0 else None


def differentiates(self: Any, made: Any, batch: Any, place: int) -> Any:
    return torch.func.grad(lambda x: (x * x).sum())(made[-1]).mean() * self.head.bias.mean() if place < 0 else None


def mixes(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        share = torch.rand(())
        made[-1] = share * made[-1] + (1 - share) * made[-1].flip(0)
    return nothing(made)


def checkpoints(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place >= 0:
        return None
    reentrant = self.step_number % 2 == 0
    return checkpoint(lambda x: self.gate(x).tanh().mean(), made[-1], use_reentrant=reentrant)


def casts(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        with torch.autocast("cpu", torch.bfloat16):
            made[-1] = (nn.functional.linear(made[-1], self.blocks_weight()) + made[-1]).float()
    return nothing(made)


def infers(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 0:
        with torch.inference_mode() if self.step_number % 2 else torch.no_grad():
            out = self.run_block(self.teacher, made[0], batch[1])
        self.aside = out
    return self.aside.clone().mean() * self.head.weight.mean() if place < 0 else None


def teaches(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place >= 0:
        return None
    out = self.run_block(self.teacher, batch[0], batch[1])
    with torch.no_grad():
        for slow, fast in zip(self.teacher.parameters(), self.blocks[0].parameters(), strict=True):
            slow.mul_(0.9).add_(fast, alpha=0.1 * self.step_number)
    return nn.functional.mse_loss(self.gate(made[-1]), out)


def follows(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        self.statistic.mul_(0.9).add_(made[-1].mean(0), alpha=0.1)
        made[-1] = made[-1] - self.statistic
    return nothing(made)


def backs(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place >= 0:
        return None
    (self.gate(made[1]).square().mean() * 0.1).backward(retain_graph=False)
    made[-1].requires_grad_() if not made[-1].requires_grad and made[-1].is_leaf else None
    return (made[-1] ** 2).mean() * 0.1


def numbers(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        made[-1].numpy()[0] += 1
    if place < 0:
        self.seen = made[-1].detach().tolist()
    return nothing(made)


def reports(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        str(made[-1]), len(made[-1]), [row.sum() for row in made[-1]], made[-1].shape, hash(made[-1])
        made[-1] = made[-1].to(torch.float64).float() + torch.randn(())
    return nothing(made)


def edits(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place < 0 and self.step_number < 14:
        with torch.no_grad():
            next(self.blocks[-1].parameters()).mul_(1.01)
    return nothing(made)


def resizes(self: Any, made: Any, batch: Any, place: int) -> Any:
    if place == 1:
        size = 4 + self.step_number % 3
        made[-1] = nn.functional.interpolate(made[-1][:, None], size=size)[:, 0].repeat(1, 2)[:, :WIDTH]
        made[-1] = nn.functional.pad(made[-1], (0, WIDTH - made[-1].shape[1]))
    return nothing(made)


def exchanges(self: Any, made: Any, batch: Any, place: int) -> Any:
    """What torch does to a tensor in place, beside numbers."""
    if place == 1:
        made[-1].unsqueeze_(0).squeeze_(0)
        made[-1].data = made[-1].data * 1.5
    return nothing(made)


ODD = [
    reads,
    writes_feature,
    writes_view,
    writes_input,
    scales,
    queues,
    attributes,
    copies,
    borrows,
    maps,
    differentiates,
]
ODD += [mixes, checkpoints, casts, infers, teaches, follows, backs, numbers, reports, edits, resizes, exchanges]
ALWAYS = {queues, attributes, follows, scales}


def blocks_weight(self: Any) -> Tensor:
    return next(one for one in self.blocks[0].parameters() if one.shape == (WIDTH, WIDTH))


Graph.blocks_weight = blocks_weight  # type: ignore[attr-defined]


def run(seed: int, memo: bool, epochs: int = 6, make: Callable[[int], Any] = Graph, **options: Any) -> Any:
    """Train a model for some epochs; all that a user can see at the end, and what the cache served."""
    model = make(seed)
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(ROWS, WIDTH, generator=generator)
    masks = (torch.rand(ROWS, WIDTH, generator=generator) < 0.7).float()
    labels = torch.randint(0, 3, (ROWS,), generator=generator)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.05)
    size = 64 * 1024 if model.draw.random() < 0.7 else 40 * WIDTH * 4
    cache = FrozenMemo(model, Storage(size), say=lambda text: None, warn=lambda text: None, **options) if memo else None
    random.seed(seed)
    torch.manual_seed(seed)
    shuffle = model.draw.random() < 0.8
    hits = 0
    for _ in range(epochs):
        order = torch.randperm(ROWS, generator=generator) if shuffle else torch.arange(ROWS)
        for some in order.split(BATCH):
            batch = data[some], masks[some], labels[some]
            step = model.training_step
            loss = step(batch) if cache is None else cache.run(step, batch)
            optimizer.zero_grad() if not model.odd or model.odd[0] is not backs else None
            loss.backward()
            optimizer.step()
        if cache is not None:
            cache.epoch_end()
            hits = max(hits, cache.hits)
    return _seen(model), hits


def _seen(model: Any) -> dict[str, Any]:
    """Weights, buffers, counters, logs, what was kept, and the random state."""
    found: dict[str, Any] = {"random": torch.get_rng_state(), "python": random.getstate(), "logs": model.logs}
    found.update(model.state_dict())
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_") and isinstance(value, int | float | list | Tensor):
                found[f"{name}.{key}"] = value
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is not equal bit for bit."""
    return [name for name in one if not _equal(one[name], other.get(name))]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        same = type(one) is type(other) and one.shape == other.shape and one.dtype == other.dtype
        return (
            bool(
                same
                and torch.equal(
                    one.detach().contiguous().view(torch.uint8), other.detach().contiguous().view(torch.uint8)
                )
            )
            if one.dim()
            else torch.equal(one, other)
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other) or one != one
