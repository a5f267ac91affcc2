"""Simulate a whole schedule with the real model, optimizers, schedulers and reconciler, without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lightning_freeze.auditing.violations import group_violations
from lightning_freeze.engine.policy import Policy
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.errors import OptimizerError, PlanError
from lightning_freeze.model.undone import same_random_state
from lightning_freeze.preview import config
from lightning_freeze.preview.epoch_length import batches_of, steps_per_window
from lightning_freeze.preview.memory import MemoryPlan, Shares
from lightning_freeze.preview.meshes import mesh_of
from lightning_freeze.preview.one_step import first_batch
from lightning_freeze.preview.user_code import described
from lightning_freeze.report.table import start_table
from lightning_freeze.report.timeline import Timeline
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.trainer.run_length import calendar_of, steps_of
from lightning_freeze.trainer.session import Session, last_moment, session_of
from lightning_freeze.trainer.strategies import check_strategy, check_unused

OnChange = Callable[[Any, Any, Reconciler], None]
_SAMPLES = 400  # samples per run, in addition to those at changes and at the start of epochs
_QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": None, "logger": False,
    "plugins": None, "profiler": None, "sync_batchnorm": False, "benchmark": None, "deterministic": None,
    "enable_progress_bar": False, "enable_model_summary": False, "barebones": False,
}  # fmt: skip


@dataclass
class Preview:
    """The result of a preview.

    Attributes:
        run: the reconciler at the end of the run.
        table: the table that the run prints at its start.
        timeline: stages over time.
        epochs: number of epochs.
        steps: number of optimizer steps.
        processes: number of processes in the config.
        bytes_each: bytes per element of a parameter in the config's precision; None: as in the model.
        remarks: the assumptions that were made.
        shares: (processes, whether sharded) -> trainable elements -> memory of one process; empty if not requested.
    """

    run: Reconciler
    table: str
    timeline: Timeline
    epochs: int = 0
    steps: int = 0
    processes: int = 1
    bytes_each: int | None = None
    remarks: list[str] = field(default_factory=list)
    shares: Shares = field(default_factory=dict)


def preview(
    files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    data: str | None = None,
    steps_per_epoch: int | None = None,
    on_change: OnChange | None = None,
    meta: bool = False,
    worlds: Sequence[int] = (),
) -> Preview:
    """Simulate the fit that a LightningCLI config describes: nothing is trained, no GPU is touched.

    A batch is read only to discover stages of a module without `example_input_array`, and, with `worlds`, for the
    memory of activations.

    Args:
        files: the configs; a later one wins.
        overrides: further options as on the command line.
        model: `pkg.mod:Class`, if the config does not name it.
        data: the same for the data module.
        steps_per_epoch: batches per epoch, instead of the length of the dataloader, which is then not built.
        on_change: called with trainer, model and reconciler whenever these are as in the real run.
        meta: whether to build the model on the meta device, which takes no memory.
        worlds: numbers of processes for which to compute the memory of one process.

    Raises:
        FreezeError: the run would fail.
    """
    asked: dict[str, Any] = {}
    device = torch.device("meta") if meta else nullcontext()
    with config.undisturbed(files), config.as_user_error(f"config {', '.join(map(str, files))}"), device:
        built = config.build(
            files, overrides, model=model, data=data, adjust=lambda options: _take_over(options, asked),
            trainer_class=_trainer_class,
        )  # fmt: skip
        return _simulate(built, asked, steps_per_epoch, on_change, worlds)


# ---- a trainer that does not run


def _trainer_class(package: Any) -> type:
    class PreviewTrainer(package.Trainer):  # type: ignore[misc]
        """A Trainer whose progress is set from outside; the user's `configure_optimizers` may ask it."""

        epoch, steps, batches = 0, 0, 1
        current_epoch = property(lambda self: self.epoch)
        global_step = property(lambda self: self.steps)
        num_training_batches = property(lambda self: self.batches)
        train_dataloader = property(lambda self: ())  # so that nothing loads the data to determine its length
        callback_metrics = property(lambda self: _Constant())

    return PreviewTrainer


class _Constant(Mapping[str, torch.Tensor]):
    """Metrics of any name that never improve, so that a metric trigger fires as early as possible."""

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.tensor(1.0)

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def _take_over(options: Any, asked: dict[str, Any]) -> None:
    """Record the config's settings, and replace those that this machine may not support."""
    asked.update({name: options.get(name) for name in _QUIET})
    for name, value in _QUIET.items():
        if name in options:
            options[name] = value


def _check_strategy(asked: Mapping[str, Any], package: str, policies: Sequence[Policy], processes: int) -> None:
    """Refuse the strategies that a run refuses, by class: building one may need packages not installed here."""
    strategy = asked["strategy"]
    if isinstance(strategy, str):
        registry = import_module(f"{package}.strategies").StrategyRegistry
        if strategy == "auto" or (strategy not in registry and strategy in ("ddp", "fsdp", "deepspeed")):
            return
        if strategy not in registry:
            raise PlanError(f"strategy '{strategy}' is none of Lightning's: {', '.join(sorted(registry))}")
        cls, arguments = registry[strategy]["strategy"], registry[strategy]["init_params"]
    elif (path := getattr(strategy, "class_path", None)) is not None:
        module, _, name = path.rpartition(".")
        cls, arguments = (
            getattr(import_module(module), name),
            {**(strategy.get("init_args") or {}), **(strategy.get("dict_kwargs") or {})},
        )
    else:
        return
    replicas = arguments.get("data_parallel_size", processes)
    replicas = asked["num_nodes"] if replicas == "auto" else replicas
    shape: Any = object.__new__(type(cls.__name__, (cls,), {"distributed_sampler_kwargs": {"num_replicas": replicas}}))
    shape.kwargs = shape._ddp_kwargs = arguments
    for policy in policies:
        check_strategy(shape, policy.title)
        if policy.idles:
            check_unused(shape, policy.title)


# ---- the simulation


def _simulate(
    built: config.Built,
    asked: Mapping[str, Any],
    steps_per_epoch: int | None,
    on_change: OnChange | None,
    worlds: Sequence[int],
) -> Preview:
    trainer, model = built.trainer, built.model
    package = _package_of(trainer)
    policies, remarks = _policies(trainer), list[str]()
    processes = _processes(asked, remarks)
    _check_strategy(asked, package, policies, processes)
    nodes = asked["num_nodes"] if isinstance(asked["num_nodes"], int) else 1
    with mesh_of(model, asked["strategy"], processes // nodes, nodes):
        _prepare(trainer, model, built.data, package, processes, steps_per_epoch)
    session = session_of(trainer)
    session.check(trainer, model)
    trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs = import_module(
        f"{package}.core.optimizer"
    )._init_optimizers_and_lr_schedulers(model)
    session.start(trainer, model)
    if session.waits:
        _show_a_batch(session, trainer, model, None if steps_per_epoch else built.data or model)
    run = session.reconciler
    assert run is not None
    if any(policy.needs_run_length for policy in policies):
        trainer.total_steps = steps_of(trainer)
    simulation = Simulation(trainer, model, run, remarks)
    simulation.on_change, bytes_each = on_change, _bytes_each(asked["precision"])
    if worlds:
        batch = _batch(trainer, model, not steps_per_epoch, remarks)
        simulation.memory = MemoryPlan(worlds, bytes_each, model, batch, remarks)
        if str(asked["precision"]).endswith("mixed"):
            remarks.append("Activations are those of float32; mixed precision needs about half.")
    found = simulation.go()
    found.processes, found.bytes_each = processes, bytes_each
    return found


def _policies(trainer: Any) -> list[Policy]:
    policies = [callback for callback in trainer.callbacks if isinstance(callback, Policy)]
    if not policies:
        raise PlanError("no callback of lightning_freeze is in trainer.callbacks, so there is nothing to preview")
    return policies


def _package_of(trainer: Any) -> str:
    origins = [cls.__module__ for cls in type(trainer).__mro__]
    return next(name for name in config.PACKAGES if any(origin.startswith(f"{name}.") for origin in origins))


def _bytes_each(precision: Any) -> int | None:
    if str(precision) in ("32-true", "64-true"):
        return int(str(precision)[:2]) // 8
    return 2 if str(precision).endswith("-true") else None


def _batch(trainer: Any, model: Any, data_is_ready: bool, remarks: list[str]) -> Any:
    """A batch for the memory of activations, None if there is none."""
    try:
        if not data_is_ready and trainer.datamodule is not None:
            trainer.datamodule.setup("fit")
        with same_random_state(), torch.device("cpu"):
            return first_batch(trainer, model)
    except Exception as error:  # the length of an epoch was given, so the data may not be available
        remarks.append(
            f"Activations are unknown: the training data gives no batch ({described(error).splitlines()[0]})."
        )
        return None


def _show_a_batch(session: Session, trainer: Any, model: Any, source: Any) -> None:
    """Discover stages from a batch of the training data, if there is one."""
    try:
        with same_random_state():
            batch = trainer.strategy.batch_to_device(next(iter(source.train_dataloader())))
    except Exception:
        session.assume(trainer, model)  # the length of an epoch was given, so the data may not be available
    else:
        session.see(trainer, model, batch, 0)


def _processes(asked: Mapping[str, Any], remarks: list[str]) -> int:
    devices, nodes = asked["devices"], asked["num_nodes"]
    if isinstance(devices, list | tuple):
        devices = len(devices)
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if not isinstance(devices, int) or devices < 1:
        devices = 1
        if asked["accelerator"] not in ("cpu", "auto", None):
            remarks.append("The number of devices is not in the config; one process is assumed.")
    return devices * (nodes if isinstance(nodes, int) else 1)


def _prepare(trainer: Any, model: Any, data: Any, package: str, processes: int, steps_per_epoch: int | None) -> None:
    """Connect model, data and trainer, and set the length of an epoch."""
    trainer.state.fn = import_module(f"{package}.trainer.states").TrainerFn.FITTING
    trainer.strategy.connect(model)
    trainer._data_connector.attach_data(model, datamodule=data)
    for one in (data, model):
        if one is not None and (one is model or steps_per_epoch is None):
            one.setup(stage="fit")
    model.configure_model()
    trainer.batches = batches_of(trainer, model if data is None else data, processes, steps_per_epoch)
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise PlanError("the run has no end (max_epochs=-1).\n  For a preview give it one: --trainer.max_epochs=10")


class Simulation:
    """Step through a run: epochs, accumulation windows, schedulers at their interval, validations.

    Args:
        trainer: a PreviewTrainer.
        model: its LightningModule.
        run: the reconciler of its callbacks.
        remarks: a list that remarks are added to.
    """

    def __init__(self, trainer: Any, model: Any, run: Reconciler, remarks: list[str]) -> None:
        self.trainer, self.model, self.run, self.remarks = trainer, model, run, remarks
        self.total = getattr(trainer, "total_steps", None)
        self.calendar = calendar_of(trainer, len(run.optimizers))
        self.timeline = Timeline()
        self.schedulers = []
        for one in trainer.lr_scheduler_configs:
            if one.reduce_on_plateau:
                remarks.append(f"{type(one.scheduler).__name__}: its metric is assumed to go on improving.")
            else:
                self.schedulers.append(one)
        if any(policy.watched_metric for policy in run.policies):
            remarks.append("The preview cannot know your metric, so it shows the earliest possible epochs.")
        if not model.automatic_optimization:
            remarks.append("Manual optimization: every optimizer is assumed to step once per batch.")

    def go(self) -> Preview:
        trainer = self.trainer
        planned = trainer.max_steps if trainer.max_steps != -1 else math.inf
        expected = min(planned, (trainer.max_epochs if trainer.max_epochs != -1 else math.inf) * trainer.batches)
        self.every = max(1, int(expected) // _SAMPLES)
        self._reconcile()
        table = start_table(self.run.view, last_moment(trainer))
        view = self.run.view
        self.timeline.begin(view, f"{view.index.model_name}: {', '.join(view.deciding)}")
        while (trainer.max_epochs == -1 or trainer.epoch < trainer.max_epochs) and trainer.steps < planned:
            self._epoch(planned)
            trainer.epoch += 1
        self.timeline.end = float(self.time)
        end = Progress(trainer.epoch - 1, trainer.steps, self.total, self.calendar)
        for policy in self.run.policies if not trainer.fast_dev_run else ():  # it is designed to end early
            self.remarks += policy.foreseen(end) or policy.warnings(end)  # fit only warns of this
        found = Preview(self.run, table, self.timeline, trainer.epoch, trainer.steps, remarks=self.remarks)
        found.shares = self.memory.shares if self.memory else {}
        return found

    time = 0.0
    on_change: OnChange | None = None
    memory: MemoryPlan | None = None

    def _epoch(self, planned: float) -> None:
        trainer = self.trainer
        self._sample(self._reconcile(), 0)
        done = 0
        windows = steps_per_window(trainer)
        while done < trainer.batches and trainer.steps < planned:
            if trainer.steps >= self.run.next_step():
                self._sample(self._reconcile(), done)
            elif trainer.steps % self.every == 0:
                self._sample(False, done)
            done = min(done + windows, trainer.batches)
            self._step(done)
        self.time = trainer.epoch + done / trainer.batches
        if done == trainer.batches:
            self._step_schedulers("epoch", trainer.epoch)
        self._validate()

    def _step(self, batches: int) -> None:
        self.trainer.steps += len(self.run.optimizers) if not self.model.automatic_optimization else 1
        for slotted in self.run.optimizers:
            slotted.steps += 1  # as a StepShaper counts; the optimizer itself never steps
        self._step_schedulers("step", batches - 1)

    def _step_schedulers(self, interval: str, place: int) -> None:
        for one in self.schedulers:
            if self.model.automatic_optimization and one.interval == interval and (place + 1) % one.frequency == 0:
                self.model.lr_scheduler_step(one.scheduler, None)

    def _validate(self) -> None:
        trainer = self.trainer
        every = trainer.check_val_every_n_epoch or 1
        if not trainer.enable_validation or (trainer.epoch + 1) % every:
            return
        interval = trainer.val_check_interval
        times = max(1, round(1 / interval)) if isinstance(interval, float) and interval > 0 else 1
        for policy in self.run.policies:
            for _ in range(times if policy.watched_metric is not None else 0):
                self.run.validated(policy, _Constant(), trainer.epoch)

    def _reconcile(self) -> bool:
        progress = Progress(self.trainer.epoch, self.trainer.steps, self.total, self.calendar)
        change = self.run.reconcile(progress)
        if change or not self.timeline.samples:
            self._check_groups()
            if self.memory is not None:
                self.memory.add(self.run)
        return bool(change)

    def _check_groups(self) -> None:
        optimizers = [slotted.optimizer for slotted in self.run.optimizers]
        wrong = group_violations(self.run.index, self.run.trainable, optimizers)
        if wrong:
            raise OptimizerError(
                f"'{wrong[0].name}' ({len(wrong)} parameters in all) {wrong[0].found} in epoch {self.trainer.epoch}, "
                f"step {self.trainer.steps}.\n  Give it to an optimizer in configure_optimizers, or freeze it: "
                "requires_grad_(False) before the fit, or FreezeLayers"
            )

    def _sample(self, change: bool, batches: int) -> None:
        time = self.trainer.epoch + batches / self.trainer.batches
        self.timeline.add(self.run.view, self.run.updates.rates(), time, self.trainer.steps, change=change)
        if self.on_change is not None:
            self.on_change(self.trainer, self.model, self.run)
