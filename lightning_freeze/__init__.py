"""Lightning callbacks for fine-tuning: staged unfreezing, per-layer learning rates, BatchNorm in eval mode."""

from lightning_freeze.callbacks.batchnorm_eval import BatchNormEval
from lightning_freeze.callbacks.feature_cache import FeatureCache
from lightning_freeze.callbacks.freeze_audit import FreezeAudit
from lightning_freeze.callbacks.freeze_layers import FreezeLayers
from lightning_freeze.callbacks.freeze_monitor import FreezeMonitor
from lightning_freeze.callbacks.gradual import GradualUnfreeze
from lightning_freeze.callbacks.layer_adaptive import LayerAdaptiveLR
from lightning_freeze.callbacks.layerwise_lr import LayerwiseLR
from lightning_freeze.callbacks.progressive import ProgressiveFreeze
from lightning_freeze.callbacks.rotating import RotatingUnfreeze
from lightning_freeze.callbacks.task_freeze import TaskFreeze
from lightning_freeze.errors import (
    FreezeError,
    FreezeViolation,
    OptimizerError,
    PatternError,
    PlanError,
    ResumeError,
    UnsupportedStrategyError,
)
from lightning_freeze.fingerprint import fingerprint
from lightning_freeze.functional import freeze, param_groups, unfreeze
from lightning_freeze.selection import select
from lightning_freeze.stages import Stage, discover_stages

__version__ = "0.1.0"

__all__ = [
    "BatchNormEval",
    "FeatureCache",
    "FreezeAudit",
    "FreezeError",
    "FreezeLayers",
    "FreezeMonitor",
    "FreezeViolation",
    "GradualUnfreeze",
    "LayerAdaptiveLR",
    "LayerwiseLR",
    "OptimizerError",
    "PatternError",
    "PlanError",
    "ProgressiveFreeze",
    "ResumeError",
    "RotatingUnfreeze",
    "Stage",
    "TaskFreeze",
    "UnsupportedStrategyError",
    "discover_stages",
    "fingerprint",
    "freeze",
    "param_groups",
    "select",
    "unfreeze",
]
