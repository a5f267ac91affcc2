"""`lightning` and `pytorch_lightning` users are served alike, whichever is installed or imported first."""

from __future__ import annotations

import json

import pytest
from processes import launch

HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""
FIT = """
import warnings
warnings.simplefilter("ignore")
import torch, {package} as pl
class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    def training_step(self, batch, batch_idx):
        return self.model(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
callback = lightning_freeze.GradualUnfreeze(["model.1", "model.0"])
assert isinstance(callback, pl.Callback)
trainer = pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[callback], logger=False, enable_progress_bar=False,
                     enable_checkpointing=False, enable_model_summary=False)
trainer.fit(Net(), torch.utils.data.DataLoader(torch.ones(4, 2)))
print([len(group["params"]) for group in trainer.optimizers[0].param_groups])
"""


SITUATIONS = [
    ("lightning.pytorch", "imported after"),
    ("pytorch_lightning", "imported before"),
    ("lightning.pytorch", "the other imported before"),
    ("pytorch_lightning", "the other imported before"),
    ("lightning.pytorch", "the other not installed"),
    ("pytorch_lightning", "the other not installed"),
]
PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
CLI = """
import warnings
warnings.simplefilter("ignore")
import {first}, lightning_freeze
from {cli}.cli import LightningCLI
from {cli}.demos.boring_classes import BoringModel
given = ["--trainer.callbacks=lightning_freeze.GradualUnfreeze", "--trainer.logger=false", "--trainer.accelerator=cpu"]
print(type(LightningCLI(BoringModel, args=given, run=False).trainer.callbacks[0]).__name__)
"""


def fitting(package: str, situation: str) -> str:
    """A script that fits with one of the packages."""
    other = PACKAGES[1 - PACKAGES.index(package)]
    hide = HIDE.format(hidden=other.partition(".")[0]) if situation == "the other not installed" else ""
    imported = {"imported before": package, "the other imported before": other}.get(situation)
    first = f"import {imported}\n" if imported else ""
    return f"{hide}{first}import lightning_freeze\n{FIT.format(package=package)}"


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each script prints, all of them run in fresh processes."""
    folder = tmp_path_factory.mktemp("situations")
    scripts = {f"{package}, {situation}": fitting(package, situation) for package, situation in SITUATIONS}
    scripts |= {f"{first}, cli of {cli}": CLI.format(first=first, cli=cli) for first in PACKAGES for cli in PACKAGES}
    (folder / "scripts.json").write_text(json.dumps(scripts))
    launch("situations_worker.py", folder)
    statuses = json.loads((folder / "statuses.json").read_text())
    said = {name: (folder / f"{name}.out").read_text() for name in scripts}
    return {name: text if statuses[name] == 0 else f"failed: {text[-2000:]}" for name, text in said.items()}


@pytest.mark.parametrize(("package", "situation"), SITUATIONS)
def test_callbacks_work_with_either_package(package: str, situation: str, printed: dict[str, str]) -> None:
    assert printed[f"{package}, {situation}"].endswith("[2, 2]\n")


@pytest.mark.parametrize("first", PACKAGES)
@pytest.mark.parametrize("cli", PACKAGES)
def test_the_command_line_of_either_package_accepts_the_callbacks(
    first: str, cli: str, printed: dict[str, str]
) -> None:
    assert printed[f"{first}, cli of {cli}"].strip().endswith("GradualUnfreeze")
