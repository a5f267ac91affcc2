"""The cost of each stage of a schedule: one real training step each, relative to training everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lightning_freeze.engine.lean_norm import is_lean, make_lean, make_plain
from lightning_freeze.engine.reconciler import Reconciler
from lightning_freeze.errors import FreezeError, PlanError
from lightning_freeze.preview import config
from lightning_freeze.preview.memory import state_per_element
from lightning_freeze.preview.one_step import first_batch, loss_of
from lightning_freeze.preview.simulation import preview
from lightning_freeze.preview.step_cost import Cost, cost
from lightning_freeze.report.grid import RULE, Column, grid, paragraph
from lightning_freeze.report.rendering import screen_width, size


@dataclass
class Savings:
    """The costs of a schedule.

    Attributes:
        model: the name of the model.
        full: the cost of a step that trains all parameters that required a gradient before the fit.
        stages: for each state of the schedule: when it begins, what was unfrozen, and the cost of a step.
    """

    model: str
    full: Cost
    stages: list[tuple[str, str, Cost]] = field(default_factory=list)

    def table(self) -> str:
        """The table of costs, absolute and relative to the full step, with the reasons below."""
        width = screen_width()
        headings = ("parameters", "forward", "backward", "kept for\nbackward", "gradients", "optimizer\nstate", "time")
        columns = [Column("from: trains"), *(Column(heading, right=True) for heading in headings)]
        rows = [row for when, what, found in self.stages for row in self._rows(f"{when}: {what}", found)]
        rows += [RULE, *self._rows("everything", self.full)]
        reasons = [f"{when}: {reason}." for when, _, found in self.stages for reason in found.reasons]
        lines = [line for reason in reasons for line in paragraph(reason, width)]
        return "\n".join([f"One training step of {self.model}", grid(columns, rows, width), *lines])

    def _rows(self, name: str, found: Cost) -> list[list[str]]:
        """The rows of figures, each followed by its percentage of the full step."""
        cells = [cell.partition("\n") for cell in self._cells(found)]
        return [[name, *(value for value, _, _ in cells)], ["", *(share for _, _, share in cells)]]

    def _cells(self, found: Cost) -> list[str]:
        def share(value: float, of: float) -> str:
            return f"{value / of:.0%}" if of else "-"

        full, states = self.full, (found.state, self.full.state)
        return [
            f"{found.trainable:,}\n{share(found.trainable, full.trainable)}",
            f"{found.forward / 1e9:.2f} GF\n{share(found.forward, full.forward)}",
            f"{found.backward / 1e9:.2f} GF\n{share(found.backward, full.backward)}",
            f"{size(found.saved)}\n{share(found.saved, full.saved)}",
            f"{size(found.gradients)}\n{share(found.gradients, full.gradients)}",
            "-" if None in states else f"{size(states[0] or 0)}\n{share(states[0] or 0, states[1] or 0)}",
            f"{1e3 * found.seconds:.1f} ms\n{share(found.seconds, full.seconds)}",
        ]


def savings(
    files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    data: str | None = None,
    steps_per_epoch: int | None = None,
) -> Savings:
    """Walk through the schedule of a LightningCLI config and run one real step, on the CPU, at each change.

    Args:
        files: the configs; a later one wins.
        overrides: further options as on the command line.
        model: `pkg.mod:Class` of the LightningModule, where the config does not name it.
        data: the same for the LightningDataModule.
        steps_per_epoch: batches per epoch, instead of the length of the dataloader.

    Raises:
        FreezeError: the run would fail.
    """
    walk = _Walk(data_is_ready=steps_per_epoch is None)
    with config.undisturbed(files):
        preview(files, overrides, model=model, data=data, steps_per_epoch=steps_per_epoch, on_change=walk)
    if walk.found is None:
        raise PlanError("the run has no training step")
    return walk.found


class _Walk:
    """Measure a step whenever the trainable set has changed.

    Args:
        data_is_ready: whether the data module is set up; it is not if the length of an epoch is given.
    """

    def __init__(self, data_is_ready: bool) -> None:
        self.found: Savings | None = None
        self._data_is_ready = data_is_ready
        self._batch: Any = None
        self._last: Any = None

    def __call__(self, trainer: Any, module: Any, run: Reconciler) -> None:
        view = run.view
        state = view.trainable, view.held
        if state == self._last:
            return
        if self.found is None:
            if trainer.datamodule is not None and not self._data_is_ready:
                trainer.datamodule.setup("fit")
            self._batch = first_batch(trainer, module)
            with _everything(run):
                full = self._cost(module, run)
            self.found = Savings(view.index.model_name, full)
        before = self._last[0] if self._last else frozenset()
        self._last = state
        when = f"epoch {view.progress.epoch}, step {view.progress.step}"
        self.found.stages.append((when, _what(run, view.trainable - before), self._cost(module, run)))

    def _cost(self, module: Any, run: Reconciler) -> Cost:
        found = cost(module, lambda: loss_of(module, self._batch))
        try:
            found.state = sum(
                state_per_element(slotted.optimizer, parameter.dtype) * parameter.numel()
                for slotted in run.optimizers
                for parameter in slotted.parameters.values()
                if parameter.requires_grad
            )
        except FreezeError:
            found.state = None
        return found


def _what(run: Reconciler, names: frozenset[str]) -> str:
    labels = list(dict.fromkeys(run.labels.get(name, "") for name in run.index.parameters if name in names))
    if not labels:
        return "less" if names else "the same in other modes"
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(label or "the rest" for label in labels[:3]) + more


@contextmanager
def _everything(run: Reconciler) -> Iterator[None]:
    """Temporarily train everything and hold nothing, as before the callbacks."""
    view = run.view
    modules = [span.module for span in run.index.spans]
    flags = {name: parameter.requires_grad for name, parameter in run.index.parameters.items()}
    modes, lean = [module.training for module in modules], [module for module in modules if is_lean(module)]
    try:
        for name, parameter in run.index.parameters.items():
            parameter.requires_grad_(name in run.can_train)
        for place, span in run.index.places:
            span.module.training = view.training_before(place)
        _each(lean, make_plain)
        yield
    finally:
        _each(lean, make_lean)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for name, flag in flags.items():
            run.index.parameters[name].requires_grad_(flag)


def _each(modules: list[nn.Module], function: Callable[[nn.Module], None]) -> None:
    for module in modules:
        function(module)
