"""Stages as YAML to paste into a config of LightningCLI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import yaml

from lightning_freeze.stages.stage import Stage


def yaml_block(stages: Sequence[Stage]) -> str:
    """The callback section of a config that unfreezes these stages, one each epoch.

    Args:
        stages: head first.

    Examples:
        >>> print(yaml_block([Stage("head", "model.fc"), Stage("body", ["model.*", "!model.fc"], factor=0.1)]))
        trainer:
          callbacks:
          - class_path: lightning_freeze.GradualUnfreeze
            init_args:
              stages:
              - name: head
                patterns: model.fc
              - name: body
                patterns:
                - model.*
                - '!model.fc'
                factor: 0.1
              every_n_epochs: 1
    """
    callback = {
        "class_path": "lightning_freeze.GradualUnfreeze",
        "init_args": {"stages": [_plain(stage) for stage in stages], "every_n_epochs": 1},
    }
    text: str = yaml.safe_dump({"trainer": {"callbacks": [callback]}}, sort_keys=False, width=120)
    return text.rstrip()


def _plain(stage: Stage) -> dict[str, object]:
    given = {field.name: getattr(stage, field.name) for field in fields(stage)}
    patterns = given["patterns"]
    given["patterns"] = patterns[0] if len(patterns) == 1 else list(patterns)
    return {name: value for name, value in given.items() if value is not None}
