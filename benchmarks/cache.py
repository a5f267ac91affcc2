"""What FeatureCache costs and saves on one thread: `python benchmarks/cache.py [NAME ...]` writes cache.json beside it.

For each model, steps with and without the cache take turns, in one process, and their CPU seconds are compared:

- known: all rows are stored. The median of the pairs.
- first epoch: no row is known, and all are stored. The median of the pairs.
- new rows: an epoch that began with stored rows, and finds none of them. Sum over sum, from its first step on.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time

import torch
from torch import Tensor, nn

import lightning_freeze
from lightning_freeze.cache.memo import FrozenMemo
from lightning_freeze.cache.row_store import Storage
from lightning_freeze.cache.seal import Seal


def small() -> nn.Module:
    """52 small tensors, half of them frozen."""
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(25)]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for layer in layers[:13]:
        layer.requires_grad_(False).eval()
    return model


def resnet18() -> nn.Module:
    """ResNet-18 of which the head trains."""
    import torchvision

    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    model.requires_grad_(False).eval()
    model.get_submodule("fc").requires_grad_(True)
    return model


def vit_small() -> nn.Module:
    """ViT-S/16 of which the last block and the head train."""
    import torchvision

    model: nn.Module = torchvision.models.VisionTransformer(224, 16, 12, 6, 384, 1536, num_classes=10)
    model.requires_grad_(False).eval()
    for name in ("encoder.layers.encoder_layer_11", "encoder.ln", "heads"):
        model.get_submodule(name).requires_grad_(True)
    return model


def bert() -> nn.Module:
    """BERT of MiniLM's size, 6 layers of 384, of which the last layer and the head train."""
    from transformers import BertConfig, BertModel

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
            self.bert, self.head = BertModel(config, add_pooling_layer=False), nn.Linear(384, 10)

        def forward(self, words: Tensor) -> Tensor:
            found: Tensor = self.head(self.bert(words, attention_mask=torch.ones_like(words)).last_hidden_state[:, 0])
            return found

    model = Bert()
    model.bert.requires_grad_(False).eval()
    model.bert.encoder.layer[5].requires_grad_(True)
    return model


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "52 small tensors": (small, (32, 64), 200),
    "ResNet-18, head": (resnet18, (8, 3, 224, 224), 20),
    "ViT-S, last block": (vit_small, (4, 3, 224, 224), 20),
    "BERT, last layer": (bert, (8, 64), 40),
}


def timed(step: Callable[[Tensor], Tensor], batch: Tensor, optimizer: torch.optim.Optimizer) -> float:
    began = process_time()
    loss = step(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return process_time() - began


def batches(shape: tuple[int, ...], count: int) -> list[Tensor]:
    """Images, or words."""
    return [torch.randint(1, 30000, shape) if shape == (8, 64) else torch.randn(shape) for _ in range(count)]


def measure(name: str) -> dict[str, float]:
    """Ratios of one model."""
    make, shape, pairs = SUBJECTS[name]
    torch.manual_seed(0)
    model = make()
    targets = torch.randint(0, 10, shape[:1])
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1e-3)

    def plain(batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(batch), targets)

    found = {}
    for what in ("known", "first epoch", "new rows"):
        memo = FrozenMemo(model, Storage(1 << 31), say=lambda text: None)
        ways, known = (partial(memo.run, plain), plain), batches(shape, 2)
        for batch in known * 12 if what == "known" else batches(shape, 4):
            timed(ways[0], batch, optimizer)
        if what == "new rows":
            memo.epoch_end()
        times: list[tuple[float, float]] = []
        for turn in range(pairs):
            batch = known[turn % 2] if what == "known" else batches(shape, 1)[0]
            pair = {way: timed(ways[way], batch, optimizer) for way in ((0, 1) if turn % 2 else (1, 0))}
            times.append((pair[0], pair[1]))
        with_it, without = map(sum, zip(*times, strict=True))
        found[what] = with_it / without if what == "new rows" else statistics.median(one / two for one, two in times)
        memo.close()
    return found


def check(repeats: int = 300) -> float:
    """Milliseconds of the check for changes of a frozen ResNet-50."""
    import torchvision

    model = torchvision.models.resnet50().requires_grad_(False).eval()
    seals = [Seal(child) for child in model.children()]
    times = []
    for _ in range(repeats):
        began = process_time()
        assert all(seal.holds() for seal in seals)
        times.append(process_time() - began)
    return statistics.median(times) * 1e3


def versions() -> dict[str, str]:
    """What the figures were measured with."""
    import torchvision
    import transformers

    parts = (lightning_freeze, torch, torchvision, transformers)
    return {"python": platform.python_version()} | {part.__name__: str(part.__version__) for part in parts}


def main() -> None:
    torch.set_num_threads(1)
    path = Path(__file__).with_suffix(".json")
    found = json.loads(path.read_text())["found"] if path.exists() else {}
    names = sys.argv[1:] or [*SUBJECTS, "check"]
    for name in names:
        if name == "check":
            found["check of a frozen ResNet-50, ms"] = check()
        else:
            found[name] = measure(name)
        print(name, found, flush=True)
        content = {"command": "python benchmarks/cache.py", "versions": versions(), "threads": 1, "found": found}
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
