"""TaskFreeze in real runs: each step is the one that has no gradient for absent tasks, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from branches import ALTERNATING, TASKS, Batches, TwoTasks, batch_of, branch, by_hand
from helpers import NeverTrains, fit, moved, tensors, trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, NAdam, RMSprop

from lightning_freeze import (
    FreezeLayers,
    GradualUnfreeze,
    PatternError,
    PlanError,
    TaskFreeze,
    UnsupportedStrategyError,
)
from lightning_freeze.schedule.tasks import tasks_of
from lightning_freeze.trainer.strategies import check_unused

MAKERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.1),
    "AdamW fused": lambda p: AdamW(p, lr=0.05, weight_decay=0.1, fused=True),
    "AdamW foreach": lambda p: AdamW(p, lr=0.05, weight_decay=0.1, foreach=True),
    "Adagrad": lambda p: Adagrad(p, lr=0.05, weight_decay=0.1),
    "RMSprop": lambda p: RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "NAdam": lambda p: NAdam(p, lr=0.05, weight_decay=0.1),
}
EPOCHS = 2


def task_freeze(**options: Any) -> TaskFreeze:
    return TaskFreeze(TASKS, verbose=False, **options)


def run(model: TwoTasks, loader: Any, *callbacks: Any, **options: Any) -> pl.Trainer:
    running = trainer(callbacks or [task_freeze()], EPOCHS, **options)
    running.fit(model, loader)
    return running


def windows(tasks: list[str], size: int = 1) -> list[list[tuple[str, int]]]:
    """What `by_hand` takes: the batches of each step."""
    batches = list(zip(tasks, range(len(tasks)), strict=True))
    return [batches[start : start + size] for _ in range(EPOCHS) for start in range(0, len(tasks), size)]


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    different = moved(tensors(expected), tensors(model))
    assert not different


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_each_step_moves_the_branches_of_its_tasks_and_the_shared_part_only(make: Any, set_to_none: bool) -> None:
    class EachStep(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.before, self.state = tensors(module), copy.deepcopy(state_by_name(trainer, module))

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            present = {"", *batch["task"]}
            absent = {name for name in self.before if branch(name) not in present}
            assert moved(self.before, tensors(module)) == set(self.before) - absent
            after = state_by_name(trainer, module)
            for name in absent:
                assert [torch.equal(v, after[name][k]) for k, v in self.state[name].items()] == [True] * len(
                    after[name]
                )
                assert module.get_parameter(name).grad is None

    model = TwoTasks(make, set_to_none)
    run(model, Batches(ALTERNATING), task_freeze(), EachStep())
    assert_same(model, by_hand(TwoTasks(make), windows(ALTERNATING))[0])


def state_by_name(trainer: Any, module: Any) -> dict[str, dict[str, torch.Tensor]]:
    state = trainer.optimizers[0].state
    return {
        name: {key: value for key, value in state.get(parameter, {}).items() if isinstance(value, torch.Tensor)}
        for name, parameter in module.named_parameters()
    }


@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_check_above_sees_what_moves_without_the_callback(set_to_none: bool) -> None:
    model = TwoTasks(MAKERS["SGD"], set_to_none)
    running = trainer([], EPOCHS)
    running.fit(model, Batches(ALTERNATING))
    different = moved(tensors(model), tensors(by_hand(TwoTasks(MAKERS["SGD"]), windows(ALTERNATING))[0]))
    assert bool(different) is not set_to_none


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_tasks_of_a_step_are_those_of_its_accumulation_window(size: int, set_to_none: bool) -> None:
    tasks = ["b", "b", "a", "b", "b", "b"]  # the last window of four has two batches, as Lightning makes it
    model = TwoTasks(MAKERS["SGD"], set_to_none)
    run(model, Batches(tasks), accumulate_grad_batches=size)
    expected = TwoTasks(MAKERS["SGD"])
    if size == 4:  # Lightning divides by the size of a full window
        optimizer = expected.make(expected.parameters())
        for window in windows(tasks, size):
            optimizer.zero_grad()
            for each in window:
                (expected.loss(batch_of(*each)) / size).backward()
            optimizer.step()  # what has no batch has no gradient: None, as in by_hand
    else:
        by_hand(expected, windows(tasks, size))
    assert_same(model, expected)


def test_a_window_that_an_epoch_cuts_off_has_no_part_in_the_next() -> None:
    class Stops(TwoTasks):
        """Batches of "a" in the first epoch, which ends after one of two, and of "b" in the next."""

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch_of("ab"[self.current_epoch], 0)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.current_epoch == 0 and batch_idx == 1 else None

    model = Stops(MAKERS["SGD"], False)
    before = tensors(model)
    run(model, Batches("aa"), accumulate_grad_batches=2)
    assert {branch(name) for name in moved(before, tensors(model))} == {"", "b"}


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_clipped_without_those_of_absent_tasks(set_to_none: bool) -> None:
    """A frozen trunk takes the gradient of everything else: the norm counts only what moves."""

    class Everything(TwoTasks):
        """Runs both branches on every batch, as masked losses do: absent tasks have gradients."""

        def loss(self, batch: Any) -> Any:
            return super().loss(batch | {"task": ["a", "b"] * 3})

    model = Everything(MAKERS["SGD"], set_to_none)
    run(model, Batches(ALTERNATING), gradient_clip_val=0.2)
    assert_same(model, by_hand(Everything(MAKERS["SGD"]), windows(ALTERNATING), clip=0.2)[0])


# ---- where the task comes from


class Said(TwoTasks):
    """Says the task itself; the batches do not hold it under the key."""

    def which(self, batch: Any) -> Any:
        return {batch["task"]} if isinstance(batch["task"], str) else set(batch["task"])


def test_a_method_of_the_module_says_the_task() -> None:
    model = Said(MAKERS["SGD"], False)
    run(model, Batches(ALTERNATING), task_freeze(task_key="which"))
    assert_same(model, by_hand(TwoTasks(MAKERS["SGD"]), windows(ALTERNATING))[0])


class Combined(TwoTasks):
    """Takes what CombinedLoader makes of one loader per task."""

    def loss(self, batch: Any) -> Any:
        parts = batch.values() if isinstance(batch, dict) else batch
        return sum(super(Combined, self).loss({"task": part.get("row"), **part}) for part in parts if part)


@pytest.mark.parametrize("kind", ["dict", "list", "dict without keys"])
def test_batches_of_a_combined_loader_have_the_tasks_of_their_parts(kind: str) -> None:
    loaders: Any = {"a": Batches("aa"), "b": Batches("bbbb", seed=10)}
    if kind == "dict without keys":
        for loader in loaders.values():
            for each in loader.all:
                each["row"] = each.pop("task")
    seen: list[set[str]] = []

    class EachStep(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            self.before = tensors(module)

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            seen.append({branch(name) for name in moved(self.before, tensors(module))})

    combined = CombinedLoader([*loaders.values()] if kind == "list" else loaders, "max_size")
    run(Combined(MAKERS["SGD"], False), combined, task_freeze(), EachStep())
    assert seen == [{"", "a", "b"}, {"", "a", "b"}, {"", "b"}, {"", "b"}] * EPOCHS


class Triple(NamedTuple):
    x: int
    task: Any


@pytest.mark.parametrize(
    ("batch", "tasks"),
    [
        ({"task": "a"}, "a"),
        ({"task": ["a", "b", "a"]}, "ab"),
        ({"task": ("b",)}, "b"),
        ({"task": [("a", "b"), ("a", "a")]}, "ab"),  # default_collate of a list per row
        ({"task": {"a"}}, "a"),
        ([{"task": "a"}, None, {"task": ["b"]}], "ab"),
        (({"x": 1}, {"task": "b"}), "b"),
        ({"left": {"task": "a"}, "right": None}, "a"),
        ({"a": {"x": 1}, "b": (1, 2)}, "ab"),
        ({"a": {"x": 1}, "b": None}, "a"),
        ({"a": {"task": "b"}}, "b"),  # what the batch says goes before what its loader is called
        (Triple(1, "a"), "a"),
        ([1, 2], ""),
        ({"x": ["a", "b"]}, ""),
    ],
)
def test_tasks_are_found_in_what_loaders_make(batch: Any, tasks: str) -> None:
    assert tasks_of(batch, "task", ["a", "b"]) == set(tasks)


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"task": "c"}, "task", r"a batch is of the task 'c', which is not among the tasks: a, b"),
        ({"task": ["a", "c"]}, "task", r"the task 'c'.*a, b"),
        ({"task": torch.tensor([1])}, "task", r"under 'task' a Tensor, and a task is a str"),
        ({"task": []}, "task", r"no task.*a dict with the keys 'a', 'b', 'y', 'task'"),
        ({}, "kind", r"there is no 'kind' in it.*a dict with the keys"),
        ({}, "type", r"there is no 'type' in it"),  # a method of every module, but not the user's
        ({}, "nothing", r"the method nothing\(\) named none"),
        ({}, "none", r"task_key='none': it returned a NoneType"),
    ],
)
def test_batches_without_a_known_task_are_refused(change: Any, key: str, message: str) -> None:
    class Wrong(TwoTasks):
        def nothing(self, batch: Any) -> set[str]:
            return set()

        def none(self, batch: Any) -> None:
            return None

    with pytest.raises(PlanError, match=f"(?s)TaskFreeze.*{message}"):
        run(Wrong(), Batches([batch_of("a", 0) | change]), task_freeze(task_key=key))


@pytest.mark.parametrize("tasks", [{}, [], {1: "in_a"}, "in_a", {"": "in_a"}])
def test_tasks_without_names_are_refused(tasks: Any) -> None:
    with pytest.raises(PlanError, match="must name at least one task"):
        TaskFreeze(tasks)


def test_a_pattern_that_matches_nothing_names_the_task() -> None:
    with pytest.raises(PatternError, match="TaskFreeze task 'b': pattern 'in_c'"):
        fit(NeverTrains(), [TaskFreeze({"a": "stem", "b": "in_c"})])


def test_a_static_graph_is_refused() -> None:
    with pytest.raises(UnsupportedStrategyError, match="static_graph"):
        check_unused(pl.strategies.DDPStrategy(static_graph=True), "TaskFreeze")


# ---- other policies, other ways to step


def test_a_parameter_of_several_tasks_moves_with_any_of_them_and_a_task_may_have_none() -> None:
    tasks = {"a": ["in_a", "out_a", "trunk"], "b": ["in_b", "out_b", "trunk"], "c": []}
    seen: dict[str, set[str]] = {}

    class Third(TwoTasks):
        def loss(self, batch: Any) -> Any:
            return super().loss(batch) if batch["task"] != "c" else sum(p.sum() for p in self.parameters())

    class EachStep(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            self.before = tensors(module)

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen[batch["task"]] = {name.split(".")[0] for name in moved(self.before, tensors(module))}

    loader = [batch_of("a", 0), batch_of("b", 1), batch_of("a", 2) | {"task": "c"}]
    run(Third(MAKERS["SGD"], False), Batches(loader), TaskFreeze(tasks, verbose=False), EachStep())
    assert seen == {"a": {"in_a", "out_a", "trunk"}, "b": {"in_b", "out_b", "trunk"}, "c": set()}


def test_stages_freeze_beside_it_and_everything_is_put_back() -> None:
    model = TwoTasks(MAKERS["AdamW"], False)
    gradual = GradualUnfreeze([["out_a", "out_b"], "trunk", ["in_a", "in_b"]], at=[0, 1, 1], verbose=False)
    before = tensors(model)
    running = run(model, Batches("ab"), task_freeze(), gradual, FreezeLayers("in_b.0.bias"))
    assert moved(before, tensors(model)) == set(before) - {"in_b.0.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    names = [group["name"] for group in running.optimizers[0].param_groups]
    assert sorted(names) == [*(f"{task}-and-{part}_a-and-1-more" for task in "ab" for part in ("in", "out")), "trunk"]


class Manual(TwoTasks):
    """One optimizer steps on every batch, the other on every second one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        heads, rest = self.optimizers()
        self.manual_backward(self.loss(batch))
        heads.step()
        heads.zero_grad(set_to_none=self.set_to_none)
        if batch_idx % 2:
            rest.step()
            rest.zero_grad(set_to_none=self.set_to_none)

    def configure_optimizers(self) -> Any:
        heads = [*self.out_a.parameters(), *self.out_b.parameters()]
        rest = [*self.in_a.parameters(), *self.in_b.parameters(), *self.trunk.parameters()]
        return [self.make(heads), self.make(rest)]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_each_optimizer_of_manual_optimization_has_a_window_of_its_own(set_to_none: bool) -> None:
    tasks = ["a", "b", "b", "b", "a", "a"]
    model = Manual(MAKERS["SGD"], set_to_none)
    run(model, Batches(tasks))
    expected = Manual(MAKERS["SGD"])
    heads, rest = expected.configure_optimizers()
    for _ in range(EPOCHS):
        for k, task in enumerate(tasks):
            expected.loss(batch_of(task, k)).backward()
            heads.step()  # what has no batch has no gradient
            heads.zero_grad()
            if k % 2:
                rest.step()
                rest.zero_grad()
    assert_same(model, expected)


def test_an_optimizer_that_is_stepped_without_lightning_moves_nothing_else() -> None:
    class Raw(TwoTasks):
        def __init__(self) -> None:
            super().__init__(MAKERS["SGD"])
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad(set_to_none=False)
            self.manual_backward(self.loss(batch))
            optimizer.step()

    model = Raw()
    run(model, Batches(ALTERNATING))
    assert_same(model, by_hand(TwoTasks(MAKERS["SGD"]), windows(ALTERNATING))[0])


class Twice(SGD):
    """Calls its closure twice, as optimizers that look ahead do, and steps through its base class."""

    def step(self, closure: Any = None) -> Any:
        closure()
        loss = closure()
        super().step()
        return loss


def test_an_optimizer_that_calls_its_closure_twice_and_its_base_class_moves_nothing_else() -> None:
    model, expected = (TwoTasks(make, False) for make in (lambda p: Twice(p, 0.05, 0.9), lambda p: SGD(p, 0.05, 0.9)))
    run(model, Batches(ALTERNATING))
    assert_same(model, by_hand(expected, windows(ALTERNATING))[0])


def test_a_step_that_the_gradient_scaler_leaves_out_takes_its_tasks_with_it() -> None:
    class Overflow(TwoTasks):
        def loss(self, batch: Any) -> Any:
            self.calls = getattr(self, "calls", -1) + 1
            return super().loss(batch) * (float("inf") if self.calls == 1 else 1.0)

    before: list[Any] = []

    class Second(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            before.append(tensors(module))

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model = Overflow(MAKERS["SGD"], False)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    run(model, Batches("abaa"), task_freeze(), Second(), plugins=[plugin], max_epochs=1)
    assert not moved(before[0], before[1]), "the step with infinite gradients was left out"
    assert {branch(name) for name in moved(before[1], before[3])} == {"", "a"}


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"num_sanity_val_steps": 2}])
def test_trial_runs_and_sanity_checks_work(options: Any) -> None:
    class Validated(TwoTasks):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    running = trainer([task_freeze()], EPOCHS, **options)
    running.fit(Validated(), Batches(ALTERNATING), Batches("ab"))


def test_batchnorm_of_an_absent_branch_keeps_its_statistics() -> None:
    model = TwoTasks(MAKERS["SGD"], False, norm=True)
    before = tensors(model)
    run(model, Batches("aa"))
    assert {branch(name) for name in moved(before, tensors(model))} == {"", "a"}


def test_a_run_resumed_between_its_steps_ends_as_if_never_interrupted(tmp_path: Path) -> None:
    whole = TwoTasks(MAKERS["AdamW"], False)
    expected = run(whole, Batches(ALTERNATING))
    first = trainer([task_freeze()], 1)
    first.fit(TwoTasks(MAKERS["AdamW"], False), Batches(ALTERNATING))
    first.save_checkpoint(tmp_path / "one.ckpt")
    model = TwoTasks(MAKERS["AdamW"], False)
    resumed = trainer([task_freeze()], EPOCHS)
    resumed.fit(model, Batches(ALTERNATING), ckpt_path=tmp_path / "one.ckpt")
    assert_same(model, whole)
    one, other = (state_by_name(each, each.lightning_module) for each in (expected, resumed))
    assert all(torch.equal(value, other[name][key]) for name in one for key, value in one[name].items())


def test_the_table_of_tasks_is_printed_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    run(TwoTasks(), Batches("a"), TaskFreeze(TASKS))
    assert "in_a" in capsys.readouterr().out
    run(TwoTasks(), Batches("a"), task_freeze())
    assert "in_a" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["", None, 3])
def test_a_key_that_is_no_name_is_refused(key: Any) -> None:
    with pytest.raises(PlanError, match=r"TaskFreeze: task_key=.* must be a key of the batch or the name of a method"):
        TaskFreeze(TASKS, task_key=key)
