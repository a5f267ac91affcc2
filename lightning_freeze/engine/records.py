"""The part of a checkpoint that belongs to policies, and how each policy finds its entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_freeze.engine.policy import Policy
from lightning_freeze.errors import ResumeError


def entry_of(policy: Policy) -> dict[str, Any]:
    """The checkpoint entry of one policy, as plain types and tensors."""
    return {
        "class": policy.title,
        "signature": policy.signature,
        "arguments": policy.arguments,
        "state": policy.state_of_run(),
        "snapshot": policy.snapshot,
    }


def load_entries(policies: Sequence[Policy], saved: Sequence[Mapping[str, Any]]) -> None:
    """Load state and snapshot of each policy. The order of policies does not matter.

    Raises:
        ResumeError: a policy has no entry, or several entries could be its own.
    """
    for policy, entry in matched(policies, saved):
        policy.load_state_of_run(dict(entry.get("state", {})))
        policy.snapshot = entry.get("snapshot")


def matched(policies: Sequence[Policy], saved: Sequence[Mapping[str, Any]]) -> list[tuple[Policy, Mapping[str, Any]]]:
    """Match policies to entries by class and signature; if several match, by constructor arguments.

    Raises:
        ResumeError: a policy has no entry, or several entries could be its own.
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
