"""The table of evidence.md against the alternatives is that of benchmarks/peers.json, and can be found again."""

from __future__ import annotations

import copy
import json
from typing import Any

import peers
import pytest
import readme
from peers_measure import correctness, lines, resumed_apart
from peers_work import PEERS, SCHEDULERS

FOUND = json.loads((peers.HERE / "peers.json").read_text())
OURS, BACKBONE_FINETUNING = PEERS[:2]


def test_the_page_shows_the_figures_of_the_json() -> None:
    text = readme.EVIDENCE.read_text()
    assert readme.replaced(text, "peers", peers.table(FOUND)) == text


def test_another_figure_makes_another_page() -> None:
    other: Any = copy.deepcopy(FOUND)
    other["peers"][OURS.name]["norm_drift"]["statistics"] = 0.25
    assert "move, by 0.2" in peers.table(other)
    text = readme.EVIDENCE.read_text()
    assert readme.replaced(text, "peers", peers.table(other)) != text


def test_without_its_marks_the_page_is_left_alone() -> None:
    with pytest.raises(SystemExit, match="and has them 0 times"):
        readme.replaced("no marks", "peers", peers.table(FOUND))


def test_all_peers_took_part_with_the_lines_that_are_written_now() -> None:
    assert not FOUND["missing"]
    assert {peer.name: lines(peer) for peer in PEERS} == {
        name: figures["lines"] for name, figures in FOUND["peers"].items()
    }


def test_the_package_was_right_in_every_respect_and_in_both_processes() -> None:
    ours = FOUND["peers"][OURS.name]
    assert ours["ddp"]["apart"] == 0.0
    assert ours["resumed_apart"] == 0.0
    assert ours["norm_drift"] == {"statistics": 0.0, "weights": 0.0}
    assert ours["dropout_on"] is False
    assert list(ours["rate_errors"]) == list(SCHEDULERS)
    assert max(ours["rate_errors"].values()) < 1e-12


@pytest.mark.filterwarnings("ignore")  # of Lightning about the loader and of its own BackboneFinetuning
def test_what_one_process_can_tell_is_found_again() -> None:
    found = correctness(OURS)
    assert found == {key: FOUND["peers"][OURS.name][key] for key in found}
    assert resumed_apart(BACKBONE_FINETUNING) > 1e-3
    assert FOUND["peers"][BACKBONE_FINETUNING.name]["resumed_apart"] > 1e-3
