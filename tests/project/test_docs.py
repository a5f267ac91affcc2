"""Every page of examples/docs: Python blocks and the notebook run, YAML blocks are configs, links lead somewhere."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import groceries
import pytest
import write_api
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "examples" / "docs").glob("*.md"))
NOTEBOOK = ROOT / "examples" / "docs" / "first_run.ipynb"
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@by_page
def test_the_python_blocks_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        for block in blocks(page, "python"):
            exec(compile(block, page.name, "exec"), namespace)


@by_page
def test_the_yaml_blocks_are_configs_of_lightning_cli(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        config = tmp_path / "config.yaml"
        config.write_text(block)
        with mock.patch("sys.argv", ["train.py", "--config", str(config), "--trainer.logger=false"]):
            LightningCLI(BoringModel, run=False, save_config_callback=None)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    files = re.findall(r"`(?:python )?((?:examples|benchmarks|tests)/[\w/.]+\.\w+)[^`]*`", text)
    for found in [page.parent / link for link in links] + [ROOT / file for file in files]:
        assert found.exists(), found


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert f"(examples/docs/{page.name})" in readme, page


def test_the_api_page_is_that_of_the_docstrings() -> None:
    assert write_api.PAGE.read_text() == write_api.page(), "run python examples/write_api.py"


def test_the_notebook_runs_and_its_outputs_are_those_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    folder = tmp_path / "examples" / "docs"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    few = {split: groceries.few_shot(groceries.load(split), per_class=1, seed=0) for split in ("train", "val", "test")}
    monkeypatch.setattr(groceries, "load", few.__getitem__)
    namespace: dict[str, Any] = {"__name__": "notebook"}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    with warnings.catch_warnings():
        for text in code:
            exec(compile(text.replace("max_epochs=8", "max_epochs=2"), NOTEBOOK.name, "exec"), namespace)
    assert (tmp_path / "demo_output" / "first_run.png").exists()
    assert 0 <= namespace["result"]["test_accuracy"] <= 1
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(code) + 1)), "stored as it was executed, from the first cell to the last"
    printed = json.dumps([cell.get("outputs", []) for cell in cells])
    assert "unfrozen model.features.16" in printed
    assert "image/png" in printed
    assert '"output_type": "error"' not in printed
