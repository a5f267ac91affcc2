"""Every LR scheduler of torch, as the tests make it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

Make = Callable[[Any], Any]


def per_group(optimizer: Any, *values: Any) -> Any:
    """A list with a value for each group; the first value alone where there is one group."""
    return list(values) if len(optimizer.param_groups) > 1 else values[0]


SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda o: LambdaLR(o, per_group(o, lambda t: 0.9**t, lambda t: 1 / (t + 1))),
    "MultiplicativeLR": lambda o: MultiplicativeLR(o, per_group(o, lambda t: 0.9, lambda t: 1 - 0.01 * t)),
    "StepLR": lambda o: StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: MultiStepLR(o, [2, 5, 9], 0.3),
    "ConstantLR": lambda o: ConstantLR(o, 0.3, 4),
    "LinearLR": lambda o: LinearLR(o, 0.1, 0.8, 7),
    "ExponentialLR": lambda o: ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: PolynomialLR(o, 30, 2.0),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: CyclicLR(
        o, per_group(o, 0.001, 0.02), per_group(o, 0.1, 0.4), 3, 2, mode="exp_range", gamma=0.9
    ),
    "CyclicLR triangular2": lambda o: CyclicLR(o, 0.001, 0.1, 2, mode="triangular2", cycle_momentum=False),
    "OneCycleLR": lambda o: OneCycleLR(o, per_group(o, 0.2, 0.5), total_steps=40),
    "OneCycleLR three_phase": lambda o: OneCycleLR(
        o, 0.3, epochs=20, steps_per_epoch=2, three_phase=True, anneal_strategy="linear"
    ),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, factor=0.7, patience=1, min_lr=per_group(o, 0.02, 0.001)),
    "SequentialLR": lambda o: SequentialLR(
        o, [ConstantLR(o, 0.1, 2), CosineAnnealingLR(o, 8), ExponentialLR(o, 0.9)], [2, 8]
    ),
    "ChainedScheduler": lambda o: ChainedScheduler([ConstantLR(o, 0.1, 3), ExponentialLR(o, 0.9), StepLR(o, 4, 0.5)]),
    "Sequential in Chained": lambda o: ChainedScheduler(
        [
            SequentialLR(o, [LinearLR(o, 0.1, total_iters=3), StepLR(o, 2, 0.5)], [3]),
            MultiplicativeLR(o, lambda t: 0.95),
        ]
    ),
    "SWALR": lambda o: SWALR(o, per_group(o, 0.02, 0.04), anneal_epochs=5),
    "milestones as many as the groups": lambda o: SequentialLR(o, [StepLR(o, 2), ExponentialLR(o, 0.9)], [2]),
}
