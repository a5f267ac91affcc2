"""What a step costs: by hand, with Lightning's BackboneFinetuning, with this package, with cache and lean norms.

    python benchmarks/savings.py [--quick] [--device cuda] [--json FILE] [--plot FILE]

Models, each with a new head: ResNet-18 and -50, ViT-B/16 (224 px), and an encoder of MiniLM's size (6 layers, 384).
Stages: the head, the last block with it, half, all. All arms of a model run in turn, on the same images, and are given
as ratios to full training: seconds per step (median), bytes that autograd keeps from forward to backward, bytes of
optimizer state; on a GPU its peak memory and samples per second too.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import readme
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50, vit_b_16

from lightning_freeze import freeze
from lightning_freeze.cache.memo import FrozenMemo
from lightning_freeze.cache.row_store import Storage
from lightning_freeze.engine.lean_norm import make_lean, make_plain
from lightning_freeze.preview.step_cost import cost

HERE = Path(__file__).parent
DOCS = HERE.parent / "examples" / "docs"
ARMS = ("full", "BackboneFinetuning", "by hand", "this package", "+ cache", "+ lean norms")
STAGES = ("head", "last block", "half", "all")


class Encoder(nn.Module):
    """As large as MiniLM-L6: 6 layers of width 384, on 128 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30522, 384)
        layers = [nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, batch_first=True) for _ in range(6)]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(384, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc(self.layers(self.embed(tokens))[:, 0])
        return out


@dataclass(frozen=True)
class Subject:
    """A model, what it takes, and its parts: the last block, and the half next to the head."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    batch: int
    head: str
    last: list[str]
    half: list[str]


def images(pixels: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, 3, pixels, pixels)


def resnet(make: Any) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model: nn.Module = make()
        model.fc = nn.Linear(model.fc.in_features, 10)  # type: ignore[arg-type, union-attr]
        return model

    return made


def vit() -> nn.Module:
    model: nn.Module = vit_b_16()
    model.heads = nn.Linear(768, 10)
    return model


VIT = "encoder.layers.encoder_layer_{}"
SUBJECTS = {
    "ResNet-18, 64 px": Subject(resnet(resnet18), images(64), 32, "fc", ["layer4"], ["layer3", "layer4"]),
    "ResNet-18": Subject(resnet(resnet18), images(224), 16, "fc", ["layer4"], ["layer3", "layer4"]),
    "ResNet-50": Subject(resnet(resnet50), images(224), 8, "fc", ["layer4"], ["layer3", "layer4"]),
    "ViT-B/16": Subject(
        vit, images(224), 4, "heads", [VIT.format(11), "encoder.ln"],
        [*(VIT.format(k) for k in range(6, 12)), "encoder.ln"],
    ),
    "MiniLM": Subject(
        Encoder, lambda rows: torch.randint(0, 30522, (rows, 128)), 16, "fc", ["layers.5"],
        [f"layers.{k}" for k in (3, 4, 5)],
    ),
}  # fmt: skip
QUICK = ("ResNet-18, 64 px", "MiniLM")


def parts(subject: Subject, stage: str) -> list[str]:
    """What trains, as patterns."""
    more = {"head": [], "last block": subject.last, "half": subject.half, "all": ["*"]}[stage]
    return [subject.head, *more]


def prepare(subject: Subject, stage: str, arm: str, device: str) -> nn.Module:
    """The model of an arm, with what trains and in which mode as that arm leaves it."""
    torch.manual_seed(0)
    model = subject.make().to(device)
    trains = parts(subject, stage)
    if arm == "full" or stage == "all":
        if arm == "+ lean norms":
            hold_norms(model)
        return model
    if arm == "BackboneFinetuning":  # what its defaults do to a backbone: all but BatchNorm frozen, in train mode
        BackboneFinetuning.freeze(model, train_bn=True)
        unfreeze(model, trains)
        return model
    if arm == "by hand":
        model.requires_grad_(False).eval()
        unfreeze(model, trains)
        return model
    freeze(model, ["*", *(f"!{pattern}" for pattern in trains)])
    if arm == "+ lean norms":
        hold_norms(model)
    return model


def unfreeze(model: nn.Module, trains: list[str]) -> None:
    for name in trains:
        model.get_submodule(name).requires_grad_(True).train()


def hold_norms(model: nn.Module) -> None:
    """What BatchNormEval(affine="freeze", memory_efficient=True) does."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)
            make_lean(module)


def measure(subject: Subject, stage: str, arm: str, device: str, steps: int) -> dict[str, float]:
    """Seconds per step, and bytes."""
    model = prepare(subject, stage, arm, device)
    batches = [subject.inputs(subject.batch).to(device) for _ in range(2)]
    targets = torch.randint(0, 10, (subject.batch,), device=device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    cache = FrozenMemo(model, Storage(1 << 30), say=lambda text: None) if arm == "+ cache" else None

    def loss(batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(batch), targets)

    def step(batch: Tensor) -> None:
        found = loss(batch) if cache is None else cache.run(loss, batch)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()

    found = {} if cache else {"saved": float(cost(model, lambda: loss(batches[0]), repeats=0).saved)}
    for _ in range(3 if cache else 1):
        for batch in batches:
            step(batch)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found["seconds"] = statistics.median(timed(step, batches, steps, device))
    found["state"] = float(
        sum(v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values() if v.dim())
    )
    if device == "cuda":
        found |= {"peak": float(torch.cuda.max_memory_allocated()), "samples": subject.batch / found["seconds"]}
    if cache:
        found["hits"] = float(cache.hits)
        cache.close()
    for module in model.modules():
        make_plain(module)
    return found


def timed(step: Callable[[Tensor], None], batches: list[Tensor], steps: int, device: str) -> Iterator[float]:
    for k in range(steps):
        if device == "cuda":
            torch.cuda.synchronize()
        began = perf_counter()
        step(batches[k % len(batches)])
        if device == "cuda":
            torch.cuda.synchronize()
        yield perf_counter() - began


def never_hits(subject: Subject, device: str, steps: int) -> float:
    """Seconds of a head-only step with a cache that never hits, relative to one without: steps of both in turn."""
    model = prepare(subject, "head", "this package", device)
    cache = FrozenMemo(model, Storage(1 << 30), say=lambda text: None)
    targets = torch.randint(0, 10, (subject.batch,), device=device)

    def loss(batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(batch), targets)

    def plain(batch: Tensor) -> None:
        loss(batch).backward()

    def cached(batch: Tensor) -> None:
        cache.run(loss, batch).backward()

    ratios = []
    for k in range(steps + 2):
        batch = [subject.inputs(subject.batch).to(device)]
        pair = [next(timed(one, batch, 1, device)) for one in ((plain, cached) if k % 2 else (cached, plain))]
        ratios.append(pair[1] / pair[0] if k % 2 else pair[0] / pair[1])
    assert cache.hits == 0
    cache.close()
    return statistics.median(ratios[2:])


def run(names: list[str], device: str, steps: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in names:
        subject = SUBJECTS[name]
        full = measure(subject, "all", "full", device, steps)
        rows = {"full": full}
        for stage in STAGES:
            for arm in ARMS[1:]:
                if stage == "all" and arm not in ("this package", "+ lean norms"):
                    continue
                rows[f"{stage}, {arm}"] = measure(subject, stage, arm, device, steps)
        results[name] = {"rows": rows, "never hits": never_hits(subject, device, max(steps, 5))}
    return results


def table(results: dict[str, Any]) -> Table:
    headings = ("model", "stage, arm", "time", "kept for backward", "optimizer state")
    found = Table(*headings, title="Relative to full training")
    for name, result in results.items():
        full = result["rows"]["full"]
        for row, figures in result["rows"].items():
            keys = ("seconds", "saved", "state")
            ratios = [f"{figures[key] / full[key]:.3f}" if key in figures else "-" for key in keys]
            found.add_row(name, row, *ratios)
        found.add_row(name, "cache that never hits", f"{result['never hits']:.3f} of a step without it")
    return found


def plot(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((3 + 2.6 * len(results), 5.5), layout="constrained")
    for axes, (name, result) in zip(
        figure.subplots(1, len(results), squeeze=False, sharey=True)[0], results.items(), strict=True
    ):
        rows = result["rows"]
        labels = [row for row in rows if row != "full"]
        colours = [f"C{ARMS.index(row.partition(', ')[2])}" for row in labels]
        axes.barh(labels, [rows[row]["seconds"] / rows["full"]["seconds"] for row in labels], color=colours)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_title(name)
    axes.invert_yaxis()
    figure.supxlabel("time of a training step, full training = 1")
    figure.savefig(path, dpi=80)


def page(results: dict[str, Any]) -> str:
    """The table of the docs: time and bytes kept for backward, each as a part of full training."""
    arms = ARMS[1:]
    lines = ["| model | trains | " + " | ".join(arms) + " |", "|---|---|" + "---|" * len(arms)]
    for name, result in results.items():
        rows = result["rows"]
        lines += [
            f"| {name} | {stage} | " + " | ".join(_cell(rows, f"{stage}, {arm}") for arm in arms) + " |"
            for stage in STAGES
        ]
    never = ", ".join(f"{name} {result['never hits']:.3f}" for name, result in results.items())
    return "\n".join([*lines, "", f"A step with a cache that never hits, relative to one without it: {never}.", ""])


def _cell(rows: dict[str, Any], row: str) -> str:
    if row not in rows:
        return ""
    figures, full = rows[row], rows["full"]
    kept = f", {figures['saved'] / full['saved']:.2f}" if "saved" in figures else ""
    return f"{figures['seconds'] / full['seconds']:.3g}{kept}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}, few steps")
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), help="only these")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, help="timed steps of each arm")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--plot", type=Path, help="write a picture")
    parser.add_argument("--page", action="store_true", help="write table and picture of the docs, measuring nothing")
    options = parser.parse_args()
    if options.page:
        results = json.loads((HERE / "savings.json").read_text())
        readme.write("savings", page(results), DOCS / "savings.md", option="--page")
        plot(results, DOCS / "savings.png")
        return
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    names = options.models or list(QUICK if options.quick else [name for name in SUBJECTS if name != QUICK[0]])
    results = run(names, options.device, options.steps or (3 if options.quick else 7))
    Console(width=120).print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
