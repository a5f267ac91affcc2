"""The part of a checkpoint that belongs to a run, and how its policies find their entries again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_freeze.engine.policy import Policy
from lightning_freeze.errors import ResumeError


def entry_of(policy: Policy) -> dict[str, Any]:
    """What a checkpoint holds of one policy, in plain types and tensors."""
    return {
        "class": policy.title,
        "signature": policy.signature,
        "arguments": policy.arguments,
        "state": policy.state_of_run(),
        "snapshot": policy.snapshot,
    }


def load_entries(policies: Sequence[Policy], saved: Sequence[Mapping[str, Any]]) -> None:
    """Give each policy its state and snapshot, whatever the order of the policies in the list.

    Raises:
        ResumeError: a policy has no entry, or it is not clear which one is its own.
    """
    for policy, entry in matched(policies, saved):
        policy.load_state_of_run(dict(entry.get("state", {})))
        policy.snapshot = entry.get("snapshot")


def matched(policies: Sequence[Policy], saved: Sequence[Mapping[str, Any]]) -> list[tuple[Policy, Mapping[str, Any]]]:
    """Each policy with its entry, by class and signature, and among several of these by the constructor's arguments.

    Raises:
        ResumeError: a policy has no entry, or it is not clear which one is its own.
    """
    left = list(saved)
    pairs: list[tuple[Policy, Mapping[str, Any]]] = []
    for policy in policies:
        of_class = [entry for entry in left if entry["class"] == policy.title]
        fitting = [entry for entry in of_class if entry["signature"] == policy.signature]
        if not fitting and policy.signature is not None:
            found = "\n              ".join(_text(entry["signature"]) for entry in of_class) or "none"
            raise ResumeError(
                f"the checkpoint does not fit {policy.title}.\n  Checkpoint: {found}\n"
                f"  This run:   {_text(policy.signature)}\n"
                "  Resume with the callbacks that wrote the checkpoint, or start a new run from its weights only"
            )
        entry = _closest(policy, fitting)
        left = [other for other in left if other is not entry]
        pairs.append((policy, entry))
    return pairs


def _closest(policy: Policy, fitting: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    same = [entry for entry in fitting if entry["arguments"] == policy.arguments] or list(fitting)
    if len({entry["arguments"] for entry in same}) > 1:
        found = "\n              ".join(entry["arguments"] for entry in same)
        raise ResumeError(
            f"the checkpoint holds several {policy.title} over the same stages, and it is not clear which of them is "
            f"this one.\n  Checkpoint: {found}\n  This run:   {policy.arguments}\n"
            "  Resume with the arguments that wrote the checkpoint"
        )
    return same[0] if same else {}


def _text(signature: Any) -> str:
    return ", ".join(f"{name} {patterns}" for name, patterns in signature) if signature else "nothing"
