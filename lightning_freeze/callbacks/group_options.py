"""Set options of the optimizer other than the learning rate, by pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.engine.context import Context
from lightning_freeze.engine.declarations import Binding, Row
from lightning_freeze.errors import PlanError
from lightning_freeze.model.patterns import as_patterns
from lightning_freeze.optim.group_options import check_option, check_options, options_text
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.trainer.callback import FreezeCallback


class GroupOptions(FreezeCallback):
    """Set options of optimizer groups, such as weight decay, for the selected parameters.

    Values are absolute. Groups are split only where values differ, and every LR scheduler keeps working.

    Args:
        options: pattern -> option -> value, for example `{"kind:norm": {"weight_decay": 0.0}}`. If several patterns
            select a parameter and set the same option, the later entry wins.
        verbose: print the table at the start, on rank 0.

    Raises:
        PlanError: `options` is empty, has another form or sets a learning rate; at the start, the optimizer lacks an
            option or refuses a value.
        PatternError: at setup, a pattern matches nothing.

    Examples:
        >>> GroupOptions({"kind:norm": {"weight_decay": 0.0}, "model.head": {"weight_decay": 0.1}}).title
        'GroupOptions'
        >>> GroupOptions({"model.head": {"lr": 0.1}})
        Traceback (most recent call last):
        ...
        lightning_freeze.errors.PlanError: GroupOptions of 'model.head': 'lr' is a learning rate, and options do not set rates.
          Use LayerwiseLR(multipliers={'pattern': factor}), which LR schedulers go on scaling
    """  # noqa: E501 - the error is one line

    def __init__(self, options: dict[str, dict[str, Any]], verbose: bool = True) -> None:
        if not isinstance(options, Mapping) or not options:
            raise PlanError(
                f"{self.title}: options={options!r} must be a dict, {{'pattern': {{'weight_decay': 0.0}}, ...}}"
            )
        for pattern, values in options.items():
            as_patterns(pattern, self.title)
            if not isinstance(values, Mapping) or not values:
                raise PlanError(f"{self._owner(pattern)}: {values!r} must be a dict, such as {{'weight_decay': 0.0}}")
            for option in values:
                check_option(option, self._owner(pattern))
        self.options = options
        self.verbose = verbose
        self._names: dict[str, list[str]] = {}
        self._owners: dict[int, list[str]] = {}  # id of a parameter -> patterns that select it

    def _owner(self, pattern: str) -> str:
        return f"{self.title} of '{pattern}'"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_owners": {}}  # ids are not valid in another process

    def bind(self, context: Context) -> Binding:
        self._names = {pattern: context.select(pattern, self.title) for pattern in self.options}
        self._owners = {}
        merged: dict[str, dict[str, Any]] = {}
        for pattern, names in self._names.items():
            for name in names:
                merged.setdefault(name, {}).update(self.options[pattern])
                self._owners.setdefault(id(context.index.parameters[name]), []).append(pattern)
        return Binding(options=merged)

    def check_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        for optimizer in optimizers:
            for place, group in enumerate(optimizer.param_groups):
                found = [self._owners.get(id(parameter), ()) for parameter in group["params"]]
                for pattern in dict.fromkeys(pattern for patterns in found for pattern in patterns):
                    check_options(optimizer, place, self.options[pattern], self._owner(pattern))

    def rows(self, progress: Progress) -> list[Row]:
        return [
            Row(pattern, [pattern], options_text(self.options[pattern]), names)
            for pattern, names in self._names.items()
        ]

    @property
    def signature(self) -> Any:
        return [[pattern, options_text(values)] for pattern, values in self.options.items()]
