"""Find modules for which eval mode changes more than dropout and batch statistics.

torchvision's RPN and RoIHeads compute their losses `if self.training`; in eval mode a frozen one returns no losses.
The source of a module's `forward` shows whether it branches on `self.training` in this way.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

# Eval mode is meant for these, whatever their source does. torch's attention uses the flag only to pick a fast path.
_EVAL_KINDS = (_NormBase, _DropoutNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_STATISTICS = {"running_mean", "running_var"}  # buffers of normalisation layers of other libraries
_CHECKPOINTING = "gradient_checkpointing"
_DROPOUT = re.compile(r"drop|stochastic_?depth", re.IGNORECASE)


def needs_train_mode(module: nn.Module) -> bool:
    """Whether a frozen module must stay in train mode, because its own `forward` branches on `self.training`.

    A branch is an `if`, `while`, `assert`, `match`, conditional or boolean expression on `self.training` in `forward`,
    in a method of the module that it calls, or in `super().forward`. Every use of `self.training` counts, except
    passing it on as an argument. These do not count:

    - normalisation, dropout of every kind, RNNs and torch's attention, which eval mode is meant for;
    - `self.gradient_checkpointing and self.training` in transformers, which does not change outputs;
    - a dropout rate that is 0 in eval mode, as in `dropout=self.dropout if self.training else 0.0`;
    - the children of the module, which are checked one by one.

    If there is no source, a `forward` whose bytecode does not mention `training` does not branch; any other counts as
    branching. The layers below a branching module are still held one by one.

    Args:
        module: the module to check, without its children.

    Examples:
        >>> class Detector(nn.Module):
        ...     def forward(self, x):
        ...         return {"loss": x.sum()} if self.training else {"scores": x}
        >>> needs_train_mode(Detector()), needs_train_mode(nn.BatchNorm1d(2)), needs_train_mode(nn.Linear(2, 2))
        (True, False, False)
    """
    if isinstance(module, _EVAL_KINDS) or _is_like_them(module):
        return False
    own = vars(module).get("forward")
    cls: Any = type(module)  # a class is hashable, whatever its instances are
    return _branches(cls, getattr(own, "__func__", own) or cls.forward)


def _is_like_them(module: nn.Module) -> bool:
    """Whether a module of another library normalises with running statistics, or is a bare module named as dropout."""
    if not _STATISTICS.isdisjoint(dict(module._buffers.items())):  # a scripted module's `_buffers` is not a dict
        return True
    bare = not list(module.children()) and not list(module.parameters(recurse=False))
    return bare and _DROPOUT.search(type(module).__name__) is not None


@cache
def _branches(cls: Any, forward: Any) -> bool:
    return any(_function_branches(function) for function in _reached(cls, forward))


def _reached(cls: Any, forward: Any) -> Iterator[Any]:
    """Yield `forward`, functions that its decorators wrap, the methods it calls on self, and its `super().forward`."""
    waiting, seen = [(forward, cls.__mro__)], set[int]()
    while waiting:
        function, classes = waiting.pop()
        function = inspect.unwrap(function)
        if id(function) in seen:
            continue
        seen.add(id(function))
        yield function
        if not isinstance(function, FunctionType):
            continue
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
        waiting += [(inner, classes) for inner in cells if isinstance(inner, FunctionType)]
        called = _names(function.__code__)
        for name in called & _methods(cls).keys() - {"forward"}:
            waiting.append((_methods(cls)[name], cls.__mro__))
        if "super" in called:
            owner = next((place for place, base in enumerate(classes) if vars(base).get("forward") is function), 0)
            above = next((b for b in classes[owner + 1 :] if isinstance(vars(b).get("forward"), FunctionType)), None)
            waiting += [] if above is None else [(vars(above)["forward"], classes[classes.index(above) :])]


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False


@cache
def _methods(cls: Any) -> dict[str, Any]:
    """The methods of a class without those of `nn.Module`."""
    bases = [base for base in reversed(cls.__mro__) if base not in (nn.Module, object)]
    return {name: value for base in bases for name, value in vars(base).items() if isinstance(value, FunctionType)}


def _names(code: CodeType) -> set[str]:
    """The attributes and global names that a function and its inner functions mention."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _function_branches(function: Any) -> bool:
    if not isinstance(function, FunctionType):
        return True  # compiled or scripted: nothing to read
    if "training" not in _names(function.__code__):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return True
    return _tree_branches(tree, next(iter(function.__code__.co_varnames), "self"))


def _tree_branches(tree: ast.AST, this: str) -> bool:
    """Whether the flag is used other than as an argument of a call or as the condition of a dropout rate."""
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    flags = [node for node in ast.walk(tree) if _is_flag(node, this)]
    copies = {
        target.id
        for flag in flags
        if isinstance(assignment := parents[flag], ast.Assign)
        for target in assignment.targets
        if isinstance(target, ast.Name)
    }
    flags += [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in copies]
    return not all(_is_harmless(flag, parents) for flag in flags)


def _is_flag(node: ast.AST, this: str) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "training"
        and isinstance(node.value, ast.Name)
        and node.value.id == this
        and isinstance(node.ctx, ast.Load)
    )


def _is_harmless(flag: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    parent = parents[flag]
    if isinstance(parent, ast.Call) and flag in parent.args:
        return _is_no_condition(parent, parents)
    if isinstance(parent, ast.keyword):
        return _is_no_condition(parents[parent], parents)
    if isinstance(parent, ast.Assign):  # uses of the copy are checked too
        return all(isinstance(target, ast.Name) for target in parent.targets)
    if isinstance(flag, ast.Name) and isinstance(flag.ctx, ast.Store):
        return True
    if isinstance(parent, ast.BoolOp) and isinstance(parent.op, ast.And) and _CHECKPOINTING in ast.unparse(parent):
        return True
    negated = isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.Not)
    return _is_dropout_rate(parents[parent] if negated else parent, parents, parent if negated else flag, negated)


def _is_no_condition(call: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a call is not part of a condition, as it is in `if keep(self.training):`."""
    node = call
    while (parent := parents.get(node)) is not None and not isinstance(node, ast.stmt):
        asked = getattr(parent, "test", None) is node or (isinstance(parent, ast.Match) and parent.subject is node)
        if asked or isinstance(parent, ast.BoolOp | ast.Compare):
            return False
        node = parent
    return True


def _is_dropout_rate(node: ast.AST, parents: dict[ast.AST, ast.AST], test: ast.AST, negated: bool) -> bool:
    """Whether this is `rate if self.training else 0.0`, with "dropout" in the name of the rate or of its target."""
    if not isinstance(node, ast.IfExp) or node.test is not test:
        return False
    rate, off = (node.orelse, node.body) if negated else (node.body, node.orelse)
    plain = isinstance(rate, ast.Name | ast.Attribute | ast.Constant)
    is_off = isinstance(off, ast.Constant) and off.value == 0 and not isinstance(off.value, bool)
    return plain and is_off and bool(_DROPOUT.search(ast.unparse(rate)) or _DROPOUT.search(_taker(parents[node])))


def _taker(node: ast.AST) -> str:
    """The name of the argument or variable that takes a value."""
    if isinstance(node, ast.keyword):
        return node.arg or ""
    if isinstance(node, ast.Assign):
        return " ".join(ast.unparse(target) for target in node.targets)
    return ""
