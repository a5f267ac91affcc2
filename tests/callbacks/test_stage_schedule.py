"""StageSchedule: the rate of every step is that of a closed form written here, to 0 difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from helpers import STAGES, Batches, Net, NeverTrains, Spy, fit, trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from schedulers import SCHEDULERS
from torch.optim import SGD, Adam, AdamW

from lightning_freeze import (
    FreezeLayers,
    GradualUnfreeze,
    LayerwiseLR,
    PlanError,
    Progress,
    Reconciler,
    RotatingUnfreeze,
    StageSchedule,
)

LR, WARMUP, FINAL = 0.1, 0.3, 0.01
UP: dict[str, Callable[[float], float]] = {
    "one_cycle": lambda t: (1 - math.cos(math.pi * t)) / 2,
    "cosine": lambda t: t,
    "linear": lambda t: t,
    "slanted_triangular": lambda t: t,
}
DOWN: dict[str, Callable[[float], float]] = {
    "one_cycle": lambda t: (1 - math.cos(math.pi * t)) / 2,
    "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
    "linear": lambda t: t,
    "slanted_triangular": lambda t: t,
}
START = {"one_cycle": 1 / 25, "cosine": 1 / 25, "linear": 1 / 25, "slanted_triangular": 1 / 32}


def closed_form(shape: str, step: int, length: int) -> float:
    """The factor of step 0, 1, ... of a stage."""
    top = math.floor(WARMUP * length + 1e-9) if shape == "slanted_triangular" else WARMUP * length
    if step >= length:
        return FINAL
    if step < top:
        return START[shape] + (1 - START[shape]) * UP[shape](step / top)
    return 1 + (FINAL - 1) * DOWN[shape]((step - top) / (length - top))


def seeing(cls: Any) -> Any:
    """An optimizer class that notes the groups it works with, within each update."""

    class Seeing(cls):  # type: ignore[misc]
        used: list[dict[str, Any]]

        def _optimizer_step_code(self) -> None:  # torch calls it at the end of each update
            if not hasattr(self, "used"):
                self.used = []
            self.used.append(
                {
                    g.get("name", ""): (g["lr"], (g["betas"][0] if "betas" in g else g.get("momentum")))
                    for g in self.param_groups
                    if g["params"]
                }
            )

    return Seeing


def rates_of(optimizer: Any) -> dict[str, list[float | None]]:
    """Group -> its rate in each step, None while it is frozen."""
    return {name: [used.get(name, (None,))[0] for used in optimizer.used] for name in ("head", "mid", "stem")}


# trigger, options of the Trainer, steps at which stages start, step at which the run ends, batches per epoch
TRIGGERS: dict[str, tuple[dict[str, Any], dict[str, Any], list[int], int, int]] = {
    "epochs": ({"at": [0, 1, 3]}, {"max_epochs": 4}, [0, 5, 15], 20, 5),
    "steps": ({"every_n_train_steps": 6}, {"max_epochs": 4}, [0, 6, 12], 20, 5),
    "fractions": ({"at": [0.0, 0.3, 0.7]}, {"max_epochs": 4}, [0, 6, 14], 20, 5),
    "curve": ({"curve": "linear"}, {"max_epochs": 4}, [0, 7, 14], 20, 5),
    "metric": ({"monitor": "val", "patience": 1}, {"max_epochs": 6}, [0, 10, 20], 30, 5),
    "epochs of windows": ({"at": [0, 1, 3]}, {"max_epochs": 4, "accumulate_grad_batches": 2}, [0, 3, 9], 12, 5),
    "steps of windows": (
        {"every_n_train_steps": 5}, {"max_epochs": 4, "accumulate_grad_batches": 2}, [0, 5, 10], 12, 5
    ),
    "a last step": ({"at": [0, 1, 2]}, {"max_epochs": 5, "max_steps": 13}, [0, 5, 10], 13, 5),
    "at once": ({"at": [0, 0, 2]}, {"max_epochs": 4}, [0, 0, 10], 20, 5),
}  # fmt: skip


# each trigger with each restart, the shapes in turn; all of it with -m matrix
CASES = [
    pytest.param(*case, marks=[] if (place + place // 8) % 4 == place % 8 // 2 else pytest.mark.matrix)
    for place, case in enumerate(product(TRIGGERS, ["stage", "new"], START))
]


@pytest.mark.parametrize(("trigger", "restart", "shape"), CASES)
def test_the_rate_of_every_step_is_that_of_the_closed_form(trigger: str, restart: Any, shape: Any) -> None:
    arguments, options, starts, end, batches = TRIGGERS[trigger]
    length = 7 if trigger == "metric" else None
    schedule = StageSchedule(shape, restart, WARMUP, FINAL, length, verbose=False)
    gradual = GradualUnfreeze(STAGES, **arguments, verbose=False)
    model = Net(lambda m: seeing(AdamW)(m.parameters(), lr=LR), metrics=[1.0] * 20)
    running = fit(model, [schedule, gradual, LayerwiseLR(0.5)], steps=batches, **options)
    ends = [*starts[1:], end]
    found = rates_of(running.optimizers[0])
    for depth, name in enumerate(STAGES):
        expected: list[float | None] = []
        for step in range(end):
            stage = max(k for k, start in enumerate(starts) if start <= step)
            begin, until = (starts[stage], ends[stage]) if restart == "stage" else (starts[depth], end)
            if length and (restart == "new" or stage < 2):
                until = begin + length
            rate = LR * 0.5**depth
            expected.append(rate * closed_form(shape, step - begin, until - begin) if step >= starts[depth] else None)
        assert found[name] == expected, name


def test_the_schedule_multiplies_with_a_warm_up_beside_it() -> None:
    model = Net(lambda m: seeing(AdamW)(m.parameters(), lr=LR))
    callbacks = [
        GradualUnfreeze(STAGES, at=[0, 1, 2], warmup_steps=3, verbose=False),
        StageSchedule("linear", warmup=WARMUP, final_factor=FINAL, verbose=False),
    ]
    running = fit(model, callbacks, epochs=3, steps=5)
    found = rates_of(running.optimizers[0])
    ramp = [1 / 3, 2 / 3, 1.0, 1.0, 1.0]
    cycle = [closed_form("linear", step, 5) for step in range(5)]
    assert found["mid"][5:10] == [LR * (r * c) for r, c in zip(ramp, cycle, strict=True)]
    assert found["mid"][10:] == found["head"][:5] == [LR * c for c in cycle]


def test_a_step_count_that_changes_by_epoch_is_known_beforehand() -> None:
    model = Net(lambda m: seeing(AdamW)(m.parameters(), lr=LR))
    callbacks = [
        GradualUnfreeze(STAGES, at=[0, 1, 2], verbose=False),
        StageSchedule("cosine", warmup=WARMUP, final_factor=FINAL, verbose=False),
        GradientAccumulationScheduler({1: 2, 3: 3}),
    ]
    running = fit(model, callbacks, epochs=4, steps=6)  # 6, 3, 3 and 2 steps
    expected = [LR * closed_form("cosine", step, length) for length in (6, 3, 5) for step in range(length)]
    assert rates_of(running.optimizers[0])["head"] == expected


class Manual(Net):
    """Two optimizers that both step with each batch: `trainer.global_step` counts both."""

    def __init__(self) -> None:
        cls = seeing(AdamW)
        super().__init__(lambda m: [cls(m.head.parameters(), lr=LR), cls([*m.stem.parameters(), *m.mid.parameters()])])
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [({"at": [0, 1]}, [0, 5]), ({"every_n_train_steps": 12}, [0, 6]), ({"at": [0.0, 0.8]}, [0, 6])],
)
def test_several_optimizers_each_follow_the_stages_in_their_own_steps(arguments: Any, starts: list[int]) -> None:
    gradual = GradualUnfreeze(["mid", ["head", "stem"]], **arguments, verbose=False)
    schedule = StageSchedule("linear", warmup=WARMUP, final_factor=FINAL, verbose=False)
    model = Manual()
    running = fit(model, [gradual, FreezeLayers("head.bias", verbose=False), schedule], epochs=3, steps=5)
    lengths = [starts[1], 15 - starts[1]]
    cycle = [closed_form("linear", step, length) for length in lengths for step in range(length)]
    first, second = (rates_of(optimizer) for optimizer in running.optimizers)
    named = {name: rates for name, rates in {**first, **second}.items() if any(rates)}
    mid = next(used for name, used in running.optimizers[1].used[0].items())
    assert mid[0] == 1e-3 * cycle[0]
    for optimizer, rate in zip(running.optimizers, (LR, 1e-3), strict=True):
        for step, used in enumerate(optimizer.used):
            assert all(lr == rate * cycle[step] for lr, _ in used.values()), (step, used, named)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("interval", ["step", pytest.param("epoch", marks=pytest.mark.matrix)])
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval':RuntimeWarning")
def test_every_scheduler_of_torch_goes_on_beside_it_and_sees_nothing(name: str, interval: str) -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = seeing(SGD)(self.parameters(), lr=LR, momentum=0.8)
            config = {"scheduler": SCHEDULERS[name](optimizer), "interval": interval, "monitor": "up"}
            return {"optimizer": optimizer, "lr_scheduler": config}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("up", 1.0 + self.global_step % 3)
            return super().training_step(batch, batch_idx)

    def groups(running: Any, _: Any) -> list[tuple[float, float]]:
        return [(group["lr"], group["momentum"]) for group in running.optimizers[0].param_groups]

    seen = []
    for schedule in ([], [StageSchedule(warmup=WARMUP, final_factor=FINAL, momentum=None, verbose=False)]):
        spies = [Spy(hook, groups) for hook in ("on_train_batch_start", "on_train_batch_end")]
        gradual = GradualUnfreeze(STAGES, at=[0, 2, 3], verbose=False)
        running = fit(Scheduled(), [*spies, gradual, *schedule], epochs=5, steps=4)
        seen.append([spies[0].seen, spies[1].seen, rates_of(running.optimizers[0])])
    (before, after, plain), (*same, scaled) = seen
    assert same == [before, after]
    cycle = [closed_form("one_cycle", step, length) for length in (8, 4, 8) for step in range(length)]
    for stage in STAGES:
        assert scaled[stage] == [
            None if rate is None else rate * factor for rate, factor in zip(plain[stage], cycle, strict=True)
        ]


# ---- momentum


def test_one_cycle_moves_the_momentum_against_the_rate_and_puts_it_back() -> None:
    for cls, options, plain in ((Adam, {}, 0.9), (SGD, {"momentum": 0.7}, 0.7)):
        model = Net(lambda m, c=cls, o=options: seeing(c)(m.parameters(), lr=LR, **o))
        schedule = StageSchedule(warmup=0.5, momentum=(0.8, 0.95), verbose=False)
        running = fit(model, [schedule], epochs=1, steps=8)
        (optimizer,) = running.optimizers
        cosine = [(1 - math.cos(math.pi * t / 4)) / 2 for t in range(4)]
        down, up = ([a + (b - a) * t for t in cosine] for a, b in ((0.95, 0.8), (0.8, 0.95)))
        assert [momentum for used in optimizer.used for _, momentum in used.values()] == [*down, *up]
        group = optimizer.param_groups[0]
        assert (group["betas"][0] if "betas" in group else group["momentum"]) == plain


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda m: seeing(SGD)(m.parameters(), lr=LR), {}),
        (lambda m: seeing(SGD)(m.parameters(), lr=LR, momentum=0.7), {"momentum": None}),
        (lambda m: seeing(SGD)(m.parameters(), lr=LR, momentum=0.7), {"shape": "cosine"}),
        (lambda m: seeing(torch.optim.RMSprop)(m.parameters(), lr=LR), {}),
    ],
)
def test_momentum_stays_where_there_is_none_or_it_is_not_asked_for(make: Any, options: Any) -> None:
    model = Net(make)
    running = fit(model, [StageSchedule(**options, verbose=False)], epochs=1, steps=4)
    group = running.optimizers[0].param_groups[0]
    assert {momentum for used in running.optimizers[0].used for _, momentum in used.values()} == {group["momentum"]}


# ---- fastai's fine_tune


def fastai_cosine(start: float, end: float, pos: float) -> float:
    return start + (1 + math.cos(math.pi * (1 - pos))) * (end - start) / 2


def fastai_cycle(pos: float, lr: float, pct: float, div: float) -> tuple[float, float]:
    """Rate and momentum of `fit_one_cycle`: combined_cos of lr / div, lr, lr / 1e5 and of 0.95, 0.85, 0.95."""
    first, (begin, top, last) = pos < pct, (lr / div, lr, lr / 1e5)
    part = pos / pct if first else (pos - pct) / (1 - pct)
    rates, momenta = ((begin, top), (0.95, 0.85)) if first else ((top, last), (0.85, 0.95))
    return fastai_cosine(*rates, part), fastai_cosine(*momenta, part)


def test_two_cycles_are_those_of_fastai_step_by_step() -> None:
    steps, epochs, base, mult = 6, 3, 2e-2, 100
    callbacks = [
        GradualUnfreeze(["head", "mid", "stem"], at=[0, 1, 1], verbose=False),
        LayerwiseLR(decay=mult**-0.5),
        StageSchedule(
            warmup=[0.99, 0.3], start_factor=[1 / 25, 1 / 5], peak_factor=[1, 0.5], final_factor=1e-5, verbose=False
        ),
    ]
    model = Net(lambda m: seeing(AdamW)(m.parameters(), lr=base))
    running = fit(model, callbacks, epochs=1 + epochs, steps=steps)
    expected: list[dict[str, tuple[float, float]]] = [
        {"head": fastai_cycle(step / steps, base, 0.99, 25)} for step in range(steps)
    ]
    rates = {"head": base / 2, "mid": base / 2 / mult**0.5, "stem": base / 2 / mult}
    expected += [
        {name: fastai_cycle(step / (steps * epochs), rate, 0.3, 5) for name, rate in rates.items()}
        for step in range(steps * epochs)
    ]
    for used, wanted in zip(running.optimizers[0].used, expected, strict=True):
        assert used.keys() == wanted.keys()
        for name, values in used.items():
            assert values == pytest.approx(wanted[name], rel=1e-12, abs=0)


# ---- what starts a stage


def test_a_layer_that_trains_again_starts_a_stage_and_a_freezing_does_not() -> None:
    model = Net(lambda m: seeing(AdamW)(m.parameters(), lr=LR))
    schedule = StageSchedule("linear", warmup=WARMUP, final_factor=FINAL, verbose=False)
    frozen = FreezeLayers("stem", 1, 3, verbose=False)
    running = fit(model, [frozen, schedule], epochs=4, steps=5)
    expected = [LR * closed_form("linear", step, length) for length in (15, 5) for step in range(length)]
    assert [next(iter(used.values()))[0] for used in running.optimizers[0].used] == expected


def test_what_another_policy_holds_still_starts_its_stage_in_time() -> None:
    model = Net(lambda m: seeing(AdamW)(m.parameters(), lr=LR))
    callbacks = [
        GradualUnfreeze(["head", ["mid", "stem"]], at=[0, 1], verbose=False),
        FreezeLayers(["mid", "stem"], stop=3, verbose=False),
        StageSchedule("linear", warmup=WARMUP, final_factor=FINAL, verbose=False),
    ]
    running = fit(model, callbacks, epochs=4, steps=5)
    expected = [LR * closed_form("linear", step, length) for length in (5, 10, 5) for step in range(length)]
    assert rates_of(running.optimizers[0])["head"] == expected


@pytest.mark.parametrize("order", ["descending", "random"])
def test_each_turn_of_a_rotation_is_a_stage(order: Any) -> None:
    model = Net(lambda m: seeing(AdamW)(m.parameters(), lr=LR))
    rotation = RotatingUnfreeze(STAGES, every_n_train_steps=4, order=order, seed=2, verbose=False)
    running = fit(model, [rotation, StageSchedule("cosine", warmup=WARMUP, final_factor=FINAL)], epochs=4, steps=6)
    active = [next(iter(used)) for used in running.optimizers[0].used]
    changes = [0, *(step for step in range(1, 24) if active[step] != active[step - 1]), 24]
    expected = [
        LR * closed_form("cosine", step, stop - start)
        for start, stop in pairwise(changes)
        for step in range(stop - start)
    ]
    assert [next(iter(used.values()))[0] for used in running.optimizers[0].used] == expected
    assert len(changes) > 4


def test_a_second_fit_of_one_trainer_has_a_cycle_of_its_own() -> None:
    schedule = StageSchedule("linear", warmup=WARMUP, final_factor=FINAL, verbose=False)
    running = trainer([schedule], 2)
    cycles = []
    for epochs in (2, 5):
        running.fit_loop.max_epochs = epochs
        model = Net(lambda m: seeing(AdamW)(m.parameters(), lr=LR))
        running.fit(model, Batches(5), Batches(1))
        cycles.append([next(iter(used.values()))[0] for used in running.optimizers[0].used])
    assert cycles == [[LR * closed_form("linear", step, length) for step in range(length)] for length in (10, 15)]


# ---- refusals


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(Batches(5).all)


def test_a_metric_trigger_needs_a_length_and_says_so_before_training() -> None:
    gradual = GradualUnfreeze(STAGES, monitor="val")
    with pytest.raises(PlanError, match=r"StageSchedule: a metric decides.*\n  Give length=.*restart='new'"):
        fit(NeverTrains(), [StageSchedule(), gradual])
    with pytest.warns(UserWarning, match="never unfrozen"):
        fit(Net(), [StageSchedule(restart="new"), gradual, StageSchedule(length=5)])


def test_a_run_without_an_end_needs_a_length() -> None:
    options = {"max_epochs": -1, "max_steps": -1}
    with pytest.raises(PlanError, match=r"the length of the stage at epoch 0, step 0 is not known.*\n  Give length="):
        fit(NeverTrains(), [StageSchedule()], **options)


def test_data_without_a_length_does_with_a_last_step_or_a_length() -> None:
    data = torch.utils.data.DataLoader(Endless(), batch_size=None)
    by_epochs = GradualUnfreeze(STAGES, every_n_epochs=1, verbose=False)
    with pytest.raises(PlanError, match="its training data no length"):
        trainer([StageSchedule(), by_epochs], 3).fit(NeverTrains(), data, Batches(1))
    with pytest.warns(UserWarning, match="never unfrozen"):
        trainer([StageSchedule(length=4), by_epochs], 3, max_steps=6).fit(Net(), data, Batches(1))
    by_steps = GradualUnfreeze(["head", "*"], every_n_train_steps=3, verbose=False)
    trainer([StageSchedule(), by_steps], 3, max_steps=6).fit(Net(), data, Batches(1))


def test_a_loop_without_a_trainer_gives_the_length() -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=LR)
    run = Reconciler(model, [StageSchedule("linear", length=10)], [optimizer])
    run.reconcile(Progress())
    assert run.updates.rates() == [[LR / 25]]
    run = Reconciler(model, [StageSchedule("linear")], [optimizer])
    run.reconcile(Progress())
    with pytest.raises(PlanError, match="Give length="):
        run.updates.rates()


def test_a_length_that_is_not_used_is_said_under_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Net(), [StageSchedule(length=10)], epochs=1)
    assert "length=10 is used only for a stage whose end is not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "square"}, "shape must be one of 'one_cycle', 'cosine', 'linear', 'slanted_triangular'"),
        ({"restart": "never"}, "restart must be one of 'stage', 'new'"),
        ({"warmup": 1.1}, "warmup must be between 0 and 1"),
        ({"warmup": [0.1, -0.1]}, "warmup must be between 0 and 1"),
        ({"warmup": []}, r"warmup=\[\] is empty"),
        ({"warmup": "0.1"}, "warmup"),
        ({"final_factor": -1}, "final_factor must be at least 0"),
        ({"length": 0}, "length"),
        ({"momentum": (0.95, 0.85)}, "momentum=.* must be a pair"),
        ({"momentum": (0.8, 0.9), "shape": "linear"}, "only with shape='one_cycle'"),
        ({"warmup": [0.1, 0.2], "restart": "new"}, "has a value per stage"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"StageSchedule: .*{message}"):
        StageSchedule(**options)


def test_a_first_beta_of_0_is_no_momentum() -> None:
    model = Net(lambda m: seeing(torch.optim.AdamW)(m.parameters(), lr=LR, betas=(0.0, 0.99)))
    running = fit(model, [StageSchedule(verbose=False)], epochs=1, steps=4)
    assert {momentum for used in running.optimizers[0].used for _, momentum in used.values()} == {0.0}
