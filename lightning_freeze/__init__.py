"""Lightning callbacks for fine-tuning: staged unfreezing, per-layer learning rates, BatchNorm in eval mode.

Names are imported when they are first used, so that the command line answers `--help` without importing torch.
Type checkers read them from `__init__.pyi`.
"""

from importlib import import_module

__version__ = "0.2.0"

_HOMES = {
    "Violation": "auditing.violations",
    "audit": "auditing.violations",
    "AnchorWeights": "callbacks.anchor_weights",
    "BatchNormEval": "callbacks.batchnorm_eval",
    "FeatureCache": "callbacks.feature_cache",
    "FreezeAudit": "callbacks.freeze_audit",
    "FreezeLayers": "callbacks.freeze_layers",
    "FreezeMonitor": "callbacks.freeze_monitor",
    "GradualUnfreeze": "callbacks.gradual",
    "GroupOptions": "callbacks.group_options",
    "LayerAdaptiveLR": "callbacks.layer_adaptive",
    "LayerwiseLR": "callbacks.layerwise_lr",
    "ProgressiveFreeze": "callbacks.progressive",
    "RateGrowth": "callbacks.rate_growth",
    "RotatingUnfreeze": "callbacks.rotating",
    "SlimCheckpoint": "callbacks.slim_checkpoint",
    "StageSchedule": "callbacks.stage_schedule",
    "TaskFreeze": "callbacks.task_freeze",
    "Reconciler": "engine.reconciler",
    "FreezeError": "errors",
    "FreezeViolation": "errors",
    "OptimizerError": "errors",
    "PatternError": "errors",
    "PlanError": "errors",
    "ResumeError": "errors",
    "UnsupportedStrategyError": "errors",
    "Freezer": "freezer",
    "freeze": "functional",
    "param_groups": "functional",
    "unfreeze": "functional",
    "fingerprint": "model.fingerprint",
    "merge_checkpoint": "model.first_bits",
    "select": "model.patterns",
    "Cost": "preview.step_cost",
    "cost": "preview.step_cost",
    "Progress": "schedule.moments",
    "discover_stages": "stages.discover",
    "Stage": "stages.stage",
}

_MODULES = ("migrate",)  # public, and not named in `__all__`: `import *` brings callbacks and functions

__all__ = [
    "AnchorWeights",
    "BatchNormEval",
    "Cost",
    "FeatureCache",
    "FreezeAudit",
    "FreezeError",
    "FreezeLayers",
    "FreezeMonitor",
    "FreezeViolation",
    "Freezer",
    "GradualUnfreeze",
    "GroupOptions",
    "LayerAdaptiveLR",
    "LayerwiseLR",
    "OptimizerError",
    "PatternError",
    "PlanError",
    "Progress",
    "ProgressiveFreeze",
    "RateGrowth",
    "Reconciler",
    "ResumeError",
    "RotatingUnfreeze",
    "SlimCheckpoint",
    "Stage",
    "StageSchedule",
    "TaskFreeze",
    "UnsupportedStrategyError",
    "Violation",
    "audit",
    "cost",
    "discover_stages",
    "fingerprint",
    "freeze",
    "merge_checkpoint",
    "param_groups",
    "select",
    "unfreeze",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"lightning_freeze.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'lightning_freeze' has no attribute '{name}'")
    found = getattr(import_module(f"lightning_freeze.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])
