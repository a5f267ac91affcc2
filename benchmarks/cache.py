"""What FeatureCache costs and saves on one thread: `python benchmarks/cache.py [NAME ...]` writes cache.json beside it.

For each model: seconds of a step whose rows are all known, relative to one without the cache, and of a step that never
hits, relative to one without. Steps of both ways take turns; medians of the pairs are reported.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

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


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "52 small tensors": (small, (32, 64), 200),
    "ResNet-18, head": (resnet18, (8, 3, 224, 224), 12),
    "ViT-S, last block": (vit_small, (4, 3, 224, 224), 6),
}


def timed(step: Callable[[Tensor], Tensor], batch: Tensor, optimizer: torch.optim.Optimizer) -> float:
    began = perf_counter()
    loss = step(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return perf_counter() - began


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
    for what in ("known", "never hits"):
        memo = FrozenMemo(model, Storage(1 << 31), say=lambda text: None)
        batches = [torch.randn(shape) for _ in range(2 if what == "known" else pairs + 4)]
        cached = [lambda batch, memo=memo: memo.run(plain, batch), plain]
        for batch in batches[:4] * (3 if what == "known" else 1):
            timed(cached[0], batch, optimizer)
        ratios = []
        for turn in range(pairs):
            batch = batches[turn % 2 if what == "known" else turn + 4]
            times = {way: timed(cached[way], batch, optimizer) for way in ((0, 1) if turn % 2 else (1, 0))}
            ratios.append(times[0] / times[1])
        found[what] = statistics.median(ratios)
        memo.close()
    return found


def check(repeats: int = 300) -> float:
    """Milliseconds of the check for changes of a frozen ResNet-50."""
    import torchvision

    model = torchvision.models.resnet50().requires_grad_(False).eval()
    seals = [Seal(child) for child in model.children()]
    times = []
    for _ in range(repeats):
        began = perf_counter()
        assert all(seal.holds() for seal in seals)
        times.append(perf_counter() - began)
    return statistics.median(times) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, object] = {"check of ResNet-50, ms": check()}
    for name in sys.argv[1:] or SUBJECTS:
        found[name] = measure(name)
        print(name, found[name], flush=True)
    print(found)
    Path(__file__).with_suffix(".json").write_text(json.dumps({"torch": torch.__version__, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
