"""Find a group for trainable parameters that are in no optimizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from lightning_freeze.errors import OptimizerError
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.optim.slotted import make_whole
from lightning_freeze.optim.state import fresh_optimizer


def join_group(optimizer: Optimizer, name: str, parameter: nn.Parameter, group: int) -> None:
    """Add a parameter to a group, before the split.

    Raises:
        OptimizerError: the optimizer refuses it; Muon, for example, takes matrices only.
    """
    try:
        fresh_optimizer(optimizer, parameter)
    except ValueError as error:
        raise OptimizerError(
            f"'{name}' is to be trained but is in no optimizer, and {type(optimizer).__name__}, in which its siblings "
            f"are, refuses it: {error}.\n  Add it to another optimizer in configure_optimizers, or freeze it "
            "(requires_grad_(False)) before the fit"
        ) from None
    target = optimizer.param_groups[group]
    target["params"].append(parameter)
    if "param_names" in target:
        target["param_names"].append(name)


def home_of(name: str, homes: Mapping[str, tuple[int, int]], ndims: Mapping[str, int]) -> tuple[int, int]:
    """The (optimizer, group) of the nearest siblings of a parameter that is in no optimizer.

    Siblings are the parameters under the same module, then under its parent, and so on. If they are in several
    groups, those with the same number of dimensions decide (weights and biases are often in separate groups).

    Args:
        name: the parameter.
        homes: parameter -> (optimizer, group), for all parameters that are in one.
        ndims: parameter -> number of dimensions, for all parameters.

    Raises:
        OptimizerError: no sibling is in an optimizer, or they are in several groups.
    """
    prefix = name
    while homes:
        prefix = prefix.rpartition(".")[0]
        siblings = [other for other in homes if not prefix or other.startswith(f"{prefix}.")]
        for near in (siblings, [other for other in siblings if (ndims[other] > 1) == (ndims[name] > 1)]):
            found = {homes[other] for other in near}
            if len(found) == 1:
                return found.pop()
        if siblings or not prefix:
            break
    raise OptimizerError(
        f"'{name}' is to be trained but is in no optimizer, and it is not clear which group it should join: "
        f"its siblings are in {len(set(homes.values()))} groups.\n  Add it to an optimizer in configure_optimizers"
    )


def join_homeless(optimizers: Sequence[Optimizer], index: ModelIndex, trains: Collection[str]) -> None:
    """Add each trainable parameter that is in no optimizer to the group of its siblings, before the split.

    Raises:
        OptimizerError: the group is ambiguous, or the optimizer refuses the parameter.
    """
    if not optimizers:
        return
    for optimizer in optimizers:
        make_whole(optimizer)
    homes = {
        name: (place, group)
        for place, optimizer in enumerate(optimizers)
        for group, options in enumerate(optimizer.param_groups)
        for parameter in options["params"]
        if (name := index.name_of(parameter)) is not None
    }
    ndims = {name: parameter.dim() for name, parameter in index.parameters.items()}
    homeless = [name for name in index.parameters if name in trains and name not in homes]
    for name, (place, group) in [(name, home_of(name, homes, ndims)) for name in homeless]:
        join_group(optimizers[place], name, index.parameters[name], group)
