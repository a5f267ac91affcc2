"""Leave unchanged tensors out of a checkpoint, and put them back when it is loaded.

A tensor is unchanged if its fingerprint is the one it had when the first fit began. A slim checkpoint stores the
fingerprint instead of the tensor; loading takes the tensor from the module as it was built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.errors import ResumeError
from lightning_freeze.model.fingerprint import hashes_of

KEY = "lightning_freeze_slim"  # of the checkpoint
_SMALLEST = 64  # elements; smaller tensors outside the state_dict are always stored
_NEVER = (KEY, "state_dict", "optimizer_states")

FirstBits = dict[str, tuple[int, str]]  # name in the state_dict -> fingerprint and dtype


def first_bits(state: Mapping[str, Any]) -> FirstBits:
    """The current fingerprints of the tensors in a `state_dict`."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and not value.is_meta}
    hashes = hashes_of(tensors)
    return {name: (hashes[name], str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}


def slim(checkpoint: Mapping[str, Any], first: FirstBits) -> dict[str, Any]:
    """A copy of a checkpoint without its unchanged tensors; without any, a plain copy.

    Args:
        checkpoint: a Lightning checkpoint, with "state_dict"; it is not modified.
        first: fingerprints from the start of the first fit, by name in the state_dict.
    """
    state = checkpoint["state_dict"]
    known = {name: value for name, value in state.items() if name in first and isinstance(value, Tensor)}
    now = first_bits(known)
    left = [name for name in known if now[name] == tuple(first[name])]
    places = {bits: name for name, bits in first.items()}
    others = {key: value for key, value in checkpoint.items() if key not in _NEVER}
    candidates = {str(place): tensor for place, (_, tensor) in enumerate(_leaves(others, ()))}
    found = first_bits({k: t for k, t in candidates.items() if t.numel() >= _SMALLEST})
    copies = [
        (list(path), places[found[str(place)]])
        for place, (path, _) in enumerate(_leaves(others, ()))
        if found.get(str(place)) in places
    ]
    if not left and not copies:
        return dict(checkpoint)
    gone = set(left)
    slimmed = {**checkpoint, "state_dict": {name: value for name, value in state.items() if name not in gone}}
    for path, _ in copies:
        slimmed = _replaced(slimmed, path, None)
    used = dict.fromkeys([*left, *(name for _, name in copies)])
    slimmed[KEY] = {"first": {name: first[name] for name in used}, "left_out": left, "copies": copies}
    return slimmed


def fill(checkpoint: dict[str, Any], state: Mapping[str, Any], of: str) -> None:
    """Put the tensors back that a slim checkpoint leaves out, in place. A full checkpoint stays as it is.

    Args:
        checkpoint: the loaded checkpoint.
        state: the `state_dict` of the module as built.
        of: the name of the module's class, for error messages.

    Raises:
        ResumeError: a tensor is missing, or has other bits than at the start of the first fit.
    """
    if KEY not in checkpoint:
        return
    record = checkpoint.pop(KEY)
    tensors = _checked(record["first"], state, of)
    kept = checkpoint["state_dict"]
    gone = {name: tensors[name] for name in record["left_out"]}
    order = [name for name in state if name in gone or name in kept]
    checkpoint["state_dict"] = {
        name: gone[name] if name in gone else kept[name] for name in dict.fromkeys([*order, *kept])
    }
    for path, name in record["copies"]:
        value = tensors[name].clone()  # loading overwrites the module's own tensor
        checkpoint.update(_replaced(checkpoint, path, value))


def _checked(first: Mapping[str, Any], state: Mapping[str, Any], of: str) -> dict[str, Tensor]:
    """The module's tensors that a slim checkpoint refers to, with their fingerprints checked."""
    tensors: dict[str, Tensor] = {}
    for name, (_, dtype) in first.items():
        if not isinstance(state.get(name), Tensor):
            raise ResumeError(
                f"the checkpoint leaves out '{name}', and {of} has no tensor of this name.\n"
                "  Build the same module as for the first fit"
            )
        tensors[name] = state[name].detach().to(getattr(torch, dtype))
    now = first_bits(tensors)
    other = [name for name in first if now[name][0] != first[name][0]]
    if other:
        raise ResumeError(
            f"the checkpoint leaves out tensors that had not changed since the first fit began, but '{other[0]}' "
            f"of {of} has other values now ({len(other)} of {len(first)} tensors differ).\n"
            "  Build the module with the pretrained weights of the first fit"
        )
    return tensors


def merge_checkpoint(slim: Mapping[str, Any] | str | Path, model: nn.Module) -> dict[str, Any]:
    """Make a full checkpoint from a slim one.

    Args:
        slim: a checkpoint written with `SlimCheckpoint`, as `torch.load` returns it, or its path. A full checkpoint
            is returned unchanged.
        model: the module as built for the first fit, before any training.

    Raises:
        ResumeError: the module has other values than at the start of the first fit.

    Examples:
        >>> merge_checkpoint({"state_dict": {"weight": torch.ones(1)}}, nn.Linear(1, 1))["state_dict"]
        {'weight': tensor([1.])}
    """
    loaded: Any = torch.load(slim, map_location="cpu", weights_only=True) if isinstance(slim, str | Path) else slim
    merged: dict[str, Any] = dict(loaded)
    left = set(merged.get(KEY, {}).get("left_out", ()))
    fill(merged, model.state_dict(), type(model).__name__)
    state = merged["state_dict"]
    merged["state_dict"] = {name: value.clone() if name in left else value for name, value in state.items()}
    return merged


def _leaves(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Yield the tensors in nested dicts and lists, each with the path of keys to it."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list):
        for key, value in enumerate(tree):
            yield from _leaves(value, (*path, key))


def _replaced(tree: Any, path: list[Any], value: Any) -> Any:
    """Copy nested dicts and lists with another value at a path."""
    if not path:
        return value
    copied = list(tree) if isinstance(tree, list) else dict(tree)
    copied[path[0]] = _replaced(tree[path[0]], path[1:], value)
    return copied
