"""The checks of an audit, and the text of violations. Plain torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze.model.fingerprint import hashes_of
from lightning_freeze.model.index import ModelIndex, tensors_of
from lightning_freeze.model.layers import has_statistics


@dataclass(frozen=True)
class Violation:
    """One violation of what was declared.

    Attributes:
        name: the parameter, buffer or module.
        found: what is wrong.
        cause: the likely cause, or the possible causes.
        stage: its stage; "" for none.
        last_right: when it was last checked and correct; "" if it was never checked before.
    """

    name: str
    found: str
    cause: str
    stage: str = ""
    last_right: str = ""

    def __str__(self) -> str:
        stage = f" (stage '{self.stage}')" if self.stage else ""
        last = f"; last right: {self.last_right}" if self.last_right else ""
        return f"'{self.name}'{stage} {self.found}{last}.\n    Likely cause: {self.cause}"


def audit(
    model: nn.Module, optimizers: Optimizer | Sequence[Optimizer] = (), before: Mapping[str, int] | None = None
) -> list[Violation]:
    """Check a model and its optimizers in a plain training loop. An empty list means that there is no violation.

    A parameter is frozen if it requires no gradient; a buffer is frozen if it is in `before`. Each frozen parameter and
    buffer in `before` must be bit-identical. With `optimizers`, each parameter that requires a gradient must be in
    exactly one group, and no frozen parameter in any.

    Args:
        model: any module.
        optimizers: one or several optimizers; without any, groups are not checked.
        before: `fingerprint(...)` from the time when the parameters were frozen.

    Examples:
        >>> import torch
        >>> from lightning_freeze import fingerprint, freeze
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> names = freeze(model, "0")
        >>> before = fingerprint(model, "0")
        >>> optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        >>> audit(model, optimizer, before)
        []
        >>> with torch.no_grad():
        ...     _ = model[0].bias.zero_()
        >>> print(audit(model, optimizer, before)[0])
        '0.bias' is frozen and has moved.
            Likely cause: it was written by hand, or by another part of the program
    """
    index = ModelIndex(model)
    trainable = frozenset(name for name, parameter in index.parameters.items() if parameter.requires_grad)
    frozen = {name: value for name, value in (before or {}).items() if name not in trainable}
    found = moved(index, frozen, trainable, optimizers := _as_list(optimizers))
    return found + (group_violations(index, trainable, optimizers) if optimizers else [])


def _as_list(optimizers: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    return [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)


def moved(
    index: ModelIndex,
    before: Mapping[str, int],
    trainable: Collection[str],
    optimizers: Sequence[Optimizer],
    others: Sequence[str] = (),
) -> list[Violation]:
    """The parameters and buffers whose bits differ from `before`.

    Args:
        index: the model.
        before: name -> hash.
        trainable: parameters that may move.
        optimizers: optimizers that should not contain frozen parameters.
        others: other callbacks that may write parameters, to name a likely cause.
    """
    now = hashes_of(tensors_of(index, before))
    wrong = [name for name in before if now.get(name) != before[name]]
    return [
        Violation(name, "is frozen and has moved" if name in now else "is gone", _cause(index, name, wrong, trainable,
                  optimizers, others))
        for name in wrong
    ]  # fmt: skip


def _cause(
    index: ModelIndex,
    name: str,
    wrong: Collection[str],
    trainable: Collection[str],
    optimizers: Sequence[Optimizer],
    others: Sequence[str],
) -> str:
    parameter = index.parameters.get(name)
    if parameter is None:
        return _cause_of_buffer(index, name, wrong, others)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    if any(parameter is member for group in groups for member in group["params"]):
        left = " and has a gradient" if parameter.grad is not None else ""
        return f"it is in a group of an optimizer{left}: weight decay or momentum goes on moving it"
    storage = _storage(parameter)
    twins = [other for other in trainable if other != name and _storage(index.parameters[other]) == storage]
    if storage and twins:
        return f"it shares its memory with '{twins[0]}', a tied alias that trains"
    if others:
        return f"{' or '.join(others)} writes parameters and buffers; or it was written by hand"
    return "it was written by hand, or by another part of the program"


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor subclass without storage of its own
        return 0


def _cause_of_buffer(index: ModelIndex, name: str, wrong: Collection[str], others: Sequence[str]) -> str:
    owner, _, leaf = name.rpartition(".")
    module = index.modules[owner].module if owner in index.modules else None
    counter = f"{owner}.num_batches_tracked" if owner else "num_batches_tracked"
    if module is not None and has_statistics(module) and leaf.startswith(("running", "num")):
        if module.training:
            return f"'{owner}', a {type(module).__name__}, is in train mode and updates its statistics"
        if counter in wrong and not others:
            return f"'{owner}', a {type(module).__name__}, ran in train mode for a while and updated its statistics"
    if others:
        return f"{' or '.join(others)} writes parameters and buffers; or it was written by hand"
    return "it was written by hand, or by the module's own forward"


def group_violations(index: ModelIndex, trainable: Collection[str], optimizers: Sequence[Optimizer]) -> list[Violation]:
    """Trainable parameters that are not in exactly one group, and frozen parameters that are in any group."""
    places: dict[str, list[str]] = {}
    for number, optimizer in enumerate(optimizers):
        for place, group in enumerate(optimizer.param_groups):
            title = f"group '{group.get('name', place)}' of optimizer {number} ({type(optimizer).__name__})"
            for parameter in group["params"]:
                if (name := index.name_of(parameter)) is not None:
                    places.setdefault(name, []).append(title)
    violations = []
    for name in index.parameters:
        found = places.get(name, [])
        if name in trainable and not found:
            cause = "somebody took it out of its group, or configure_optimizers left it out; so it does not move"
            violations.append(Violation(name, "is trainable and in no group of any optimizer", cause))
        elif name in trainable and len(found) > 1:
            cause = "somebody added it a second time; it is stepped twice"
            violations.append(Violation(name, f"is in {len(found)} groups: {', '.join(found)}", cause))
        elif name not in trainable and found:
            cause = "somebody put it back; weight decay or momentum can move it"
            violations.append(Violation(name, f"is frozen and in {found[0]}", cause))
    return violations


def flag_violations(index: ModelIndex, trainable: Collection[str]) -> list[Violation]:
    """Parameters with a wrong `requires_grad`, and parameters that the model no longer has."""
    violations = []
    cause = "somebody set requires_grad by hand, or another callback did"
    for name, parameter in index.parameters.items():
        if parameter.requires_grad != (name in trainable):
            found = "is frozen and requires a gradient" if parameter.requires_grad else "is trainable and requires none"
            violations.append(Violation(name, found, cause))
    return violations


def replaced(index: ModelIndex) -> list[Violation]:
    """Parameters that were replaced by another object, which no optimizer and no callback knows."""
    cause = "a new nn.Parameter was assigned to the module, or load_state_dict(assign=True) was called"
    violations: list[Violation] = []
    seen: set[str] = set()
    for span in index.spans:
        prefix = f"{span.name}." if span.name else ""
        for leaf, parameter in span.module._parameters.items():
            name = f"{prefix}{leaf}"
            known = index.aliases.get(name)
            if known is not None and known not in seen and parameter is not index.parameters[known]:
                seen.add(known)
                violations.append(Violation(name, "was replaced by another tensor", cause))
    return violations


def mode_violations(index: ModelIndex, held: Collection[int]) -> list[Violation]:
    """Modules that should be held in eval mode, but are in train mode."""
    return [
        Violation(
            index.spans[place].name,
            f"({type(index.spans[place].module).__name__}) is to run in eval mode and is in train mode",
            "its `training` was set by hand, or nn.Module.train was called on it past the instance",
        )
        for place in sorted(held)
        if index.spans[place].module.training
    ]


def placed(
    violations: Iterable[Violation],
    index: ModelIndex,
    labels: Mapping[str, str],
    last_right: Mapping[str, str],
    otherwise: str,
) -> list[Violation]:
    """Add to each violation its stage and when it was last correct; `otherwise` if no hash of it is kept."""
    return [
        replace(one, stage=_stage(index, labels, one.name), last_right=last_right.get(one.name, otherwise))
        for one in violations
    ]


def _stage(index: ModelIndex, labels: Mapping[str, str], name: str) -> str:
    """The stage of a parameter; for a module or buffer, the stage of the parameters around it."""
    while name and name not in labels:
        under = index.under(name) if name in index.modules else []
        found = [labels[parameter] for parameter in under if parameter in labels]
        if found:
            return found[0]
        name = name.rpartition(".")[0]
    return labels.get(name, "")


def message(violations: Sequence[Violation], when: str, limit: int = 10) -> str:
    """The violations as one text, at most `limit` of them."""
    lines = [f"  {place + 1}. {one}" for place, one in enumerate(violations[:limit])]
    more = [f"  ... and {len(violations) - limit} more"] if len(violations) > limit else []
    count = f"{len(violations)} violation" + ("s" if len(violations) > 1 else "")
    return "\n".join([f"audit at {when}: {count}.", *lines, *more])
