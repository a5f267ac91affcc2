"""`lightning` and `pytorch_lightning` users are served alike, whichever is installed or imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(
    ("package", "situation"),
    [
        ("lightning.pytorch", "imported after"),
        ("pytorch_lightning", "imported before"),
        ("lightning.pytorch", "the other imported before"),
        ("pytorch_lightning", "the other imported before"),
        ("lightning.pytorch", "the other not installed"),
        ("pytorch_lightning", "the other not installed"),
    ],
)
def test_callbacks_work_with_either_package(package: str, situation: str) -> None:
    other = "lightning" if package == "pytorch_lightning" else "pytorch_lightning"
    hide = HIDE.format(hidden=other) if situation == "the other not installed" else ""
    before = {
        "imported before": package,
        "the other imported before": f"{other}.pytorch" if other == "lightning" else other,
    }
    imported = before.get(situation)
    first = f"import {imported}\n" if imported else ""
    script = f"{hide}{first}import lightning_freeze\n{FIT.format(package=package)}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("[2, 2]\n")


@pytest.mark.parametrize("first", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("cli", ["lightning.pytorch", "pytorch_lightning"])
def test_the_command_line_of_either_package_accepts_the_callbacks(first: str, cli: str) -> None:
    script = f"""
import warnings
warnings.simplefilter("ignore")
import {first}, lightning_freeze
from {cli}.cli import LightningCLI
from {cli}.demos.boring_classes import BoringModel
given = ["--trainer.callbacks=lightning_freeze.GradualUnfreeze", "--trainer.logger=false", "--trainer.accelerator=cpu"]
print(type(LightningCLI(BoringModel, args=given, run=False).trainer.callbacks[0]).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("GradualUnfreeze")
