"""Five ways to unfreeze in stages, in one run on the same work: what is right about each, and what it costs.

    python benchmarks/peers.py [--json FILE]     # measure: 2 processes with gloo, then one; some minutes
    python benchmarks/peers.py --readme          # write the table of evidence.md from the JSON, measuring nothing

finetuning-scheduler takes part where it is installed (`pip install finetuning-scheduler`). What users of each write
is in peers_work.py, how it is measured in peers_measure.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import readme
import torch
from peers_measure import correctness, costs, ranks
from peers_work import FULL, PEERS, Peer

HERE = Path(__file__).parent
ROUNDS = 5
Figures = dict[str, Any]


# ---- measuring


def quiet() -> None:
    """Leave the screen to the results."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "finetuning_scheduler", "torch.nn.parallel.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def present(peers: Sequence[Peer]) -> list[Peer]:
    """Those that are installed."""
    return [peer for peer in peers if peer.name != "finetuning-scheduler" or util.find_spec("finetuning_scheduler")]


def ddp(path: Path) -> None:
    """Run by `measure` as a script of its own; Lightning starts it a second time as rank 1."""
    found = {peer.name: ranks(peer) for peer in present(PEERS)}
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        path.write_text(json.dumps(found))


def measure() -> Figures:
    """Everything about every peer that is installed."""
    peers = present(PEERS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ddp.json")
        subprocess.run([sys.executable, __file__, "--ddp", str(path)], check=True, stdout=subprocess.DEVNULL)
        processes = json.loads(path.read_text())
    right = {peer.name: correctness(peer) for peer in peers}
    cost = costs([FULL, *peers], ROUNDS)
    full = cost.pop(FULL.name)
    for name in cost:
        for key in ("step_ms", "saved_bytes"):
            base = full[key][-1]
            cost[name][key.split("_")[0] + "_ratio"] = [value / base for value in cost[name][key]]
    names = ["lightning", "torch", *(["finetuning-scheduler"] if len(peers) == len(PEERS) else [])]
    return {
        "versions": {name: metadata.version(name) for name in names},
        "full_training": {key: full[key] for key in ("step_ms", "saved_bytes")},
        "peers": {peer.name: right[peer.name] | {"ddp": processes[peer.name]} | cost[peer.name] for peer in peers},
        "missing": [peer.name for peer in PEERS if peer not in peers],
    }


# ---- the table


def _verdict(good: str, bad: str) -> Callable[[float | str], str]:
    def said(value: float | str) -> str:
        if isinstance(value, str):
            return f"raises {value.split(':')[0]}"
        return good if value == 0 else f"{bad}, by {value:.1g}"

    return said


def _rate(value: float | str) -> str:
    if isinstance(value, str):
        return "refused" if value.startswith("MisconfigurationException") else "raises"
    return "exact" if value < 1e-12 else f"up to {1 + value:.2g}x"


def _rates(peer: Figures) -> str:
    by_verdict: dict[str, list[str]] = {}
    for scheduler, value in peer["rate_errors"].items():
        by_verdict.setdefault(_rate(value), []).append(scheduler)
    if len(by_verdict) == 1:
        return f"{next(iter(by_verdict))} in all four"
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items())


def _percent(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:.0f}%" for value in values)


ROWS: dict[str, Callable[[Figures], str]] = {
    "stages": lambda p: str(p["stages"]),
    "replicas after unfreezing under DDP": lambda p: (
        f"raises {p['ddp']['error'].split(':')[0]}"
        if "error" in p["ddp"]
        else _verdict("equal", "drift apart")(p["ddp"]["apart"])
    ),
    "gradients sent by DDP per stage": lambda p: (
        "-" if "error" in p["ddp"] else ", ".join(f"{sent / 1000:.0f} kB" for sent in p["ddp"]["sent_bytes"])
    ),
    "weights after a resume": lambda p: _verdict("identical", "differ")(p["resumed_apart"]),
    "statistics of frozen BatchNorm": lambda p: _verdict("still", "move")(p["norm_drift"]["statistics"]),
    "weights of frozen BatchNorm": lambda p: _verdict("still", "move")(p["norm_drift"]["weights"]),
    "Dropout of the frozen part": lambda p: "on" if p["dropout_on"] else "off",
    "rates under one schedule over the run": lambda p: p.get("schedule", _rates(p)),
    "step time per stage": lambda p: _percent(p["step_ratio"]),
    "memory for backward per stage": lambda p: _percent(p["saved_ratio"]),
    "lines a user writes": lambda p: f"{p['lines']} lines",
}


def table(found: Figures) -> str:
    """The figures as a Markdown table, and what has to be known to read it."""
    peers = {name: dict(figures) for name, figures in found["peers"].items()}
    for peer in PEERS:
        if peer.name in peers:
            peers[peer.name]["stages"] = peer.stages
        if peer.name in peers and peer.fits:
            peers[peer.name]["schedule"] = "a schedule for each stage"
    rows = [["", *peers], ["---"] * (len(peers) + 1)]
    rows += [[title, *(say(figures) for figures in peers.values())] for title, say in ROWS.items()]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    missing = f" Not installed, so not measured: {', '.join(found['missing'])}." if found["missing"] else ""
    about = (
        f"Measured in one run by `python benchmarks/peers.py`, with {versions}.{missing} Three stages (head, layer4, "
        "the rest) of two epochs each, every stage at half the rate of the one above it; what users of each write is "
        "in `benchmarks/peers_work.py`. Time and memory are shares of full training, with noise of some percent in the "
        "times. A rate is compared at every step with factor x the schedule of a run without stages: "
        "BackboneFinetuning computes the backbone's rate itself (here a constant). For finetuning-scheduler, rates are "
        "compared with the rate at which a stage starts, here factor x the first rate of the run."
    )
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows]) + f"\n\n{about}\n"


def main(given: Sequence[str] | None = None) -> None:
    """Measure and write the JSON, or write the evidence page from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=HERE / "peers.json")
    parser.add_argument("--readme", action="store_true", help="write the table of the page, measuring nothing")
    parser.add_argument("--ddp", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    quiet()
    if options.ddp:
        return ddp(options.ddp)
    if options.readme:
        readme.write("peers", table(json.loads(options.json.read_text())))
        return None
    found = measure()
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return None


if __name__ == "__main__":
    main()
