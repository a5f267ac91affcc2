"""How users call the public names; checked by mypy in strict mode, run by test_contract."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lightning_freeze as lf


def groups(model: nn.Module) -> torch.optim.Optimizer:
    """Plain functions, for a loop without a Trainer."""
    stages: list[lf.Stage] = lf.discover_stages(model, max_stages=2)
    names: list[str] = lf.freeze(model, stages[-1].patterns)
    assert names == lf.select(model, stages[-1].patterns)
    before: dict[str, int] = lf.fingerprint(model, names)
    optimizer = torch.optim.AdamW(lf.param_groups(model, lr=1e-3, decay=0.5, multipliers={"0": 0.1}))
    violations: list[lf.Violation] = lf.audit(model, optimizer, before)
    assert violations == []
    lf.unfreeze(model, "*")
    return optimizer


def measured(model: nn.Module, inputs: Tensor) -> float:
    """The cost of a step."""
    found: lf.Cost = lf.cost(model, lambda: model(inputs).sum())
    return found.seconds


def callbacks() -> list[object]:
    """Callbacks with the arguments that most users give."""
    return [
        lf.GradualUnfreeze([lf.Stage("top", ["head"]), "body"], at=[0, 2], warmup_steps=10),
        lf.LayerwiseLR(decay=0.5, multipliers={"head": 1.0}),
        lf.FreezeLayers(["*", "!head"], stop=2, optimizer_state="cpu"),
        lf.BatchNormEval(when="frozen", affine="freeze"),
        lf.TaskFreeze({"a": "head.a", "b": ["head.b"]}),
        lf.RotatingUnfreeze(4, active=2, order="ascending"),
        lf.ProgressiveFreeze(span=(0.2, 0.8), curve="linear"),
        lf.LayerAdaptiveLR("trust_ratio", max_factor=2.0),
        lf.FeatureCache("disk", max_gb=1.5),
        lf.FreezeAudit(on_violation="warn"),
        lf.FreezeMonitor(log=False, plot="run.png"),
    ]
