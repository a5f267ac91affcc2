"""What the commands that read a config say when it is wrong: one line that matters, and what was meant."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_freeze.cli import COMMANDS, main

USER = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule

class Net(LightningModule):
    def __init__(self, lr: float = 0.1, width: int = 2):
        super().__init__()
        self.lr, self.model = lr, torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(2, 1))
        if width == 13:
            self.wrong()
    def wrong(self):
        return torch.zeros(2) @ torch.zeros(3)  # the user's line
    def training_step(self, batch, batch_idx):
        return self.model(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(torch.randn(8, 2))

class Data(LightningDataModule):
    def setup(self, stage):
        self.stream = Stream()
    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.stream, batch_size=4)
"""
CONFIG = """
trainer:
  max_epochs: 2
  callbacks:
    - class_path: lightning_freeze.GradualUnfreeze
      init_args: {stages: [model.1, model.0]}
model:
  class_path: words_user.Net
data:
  class_path: words_user.Data
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "words_user.py").write_text(USER)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "words_user", raising=False)
    return tmp_path / "config.yaml"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("{stages: [", "{stage: [", ["lightning_freeze.GradualUnfreeze has no argument 'stage'", "stages"]),
        ("GradualUnfreeze", "GradualUnfreze", ["lightning_freeze has no 'GradualUnfreze'", "GradualUnfreeze"]),
        ("max_epochs: 2", "max_epoch: 2", ["there is no option 'trainer.max_epoch'", "trainer.max_epochs"]),
        ("trainer:\n", "trainr:\n", ["there is no option 'trainr.", "trainer."]),
        ("user.Net", "user.Nett", ["model: words_user.Nett: words_user has no 'Nett'", "Net"]),
        ("class_path: words_user.Net", "class_path: word_user.Net", ["there is no module 'word_user'", "words_user"]),
        ("max_epochs: 2", "max_epochs: many", ["trainer.max_epochs must be int, got many"]),
        ("model.0]", "model.0], patience: three", ["callbacks.GradualUnfreeze.patience must be int, got three"]),
        ("lightning_freeze.GradualUnfreeze", "words_user.Net", ["trainer.callbacks: words_user.Net is not a Callback"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_config_is_one_line_and_what_was_meant(
    config: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, lines: list[str]
) -> None:
    config.write_text(CONFIG.replace(old, new, 1))
    printed = refused(capsys, "preview", "--config", "config.yaml").splitlines()
    assert printed[0].startswith("lightning-freeze: config config.yaml: ")
    assert lines[0] in printed[0]
    assert len(printed) == len(lines)
    if len(lines) == 2:
        assert printed[1].startswith(f"  Did you mean {lines[1]}")


def test_an_unknown_option_of_the_command_gets_a_suggestion(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean --steps-per-epoch?" in refused(
        capsys, "preview", "--config", "config.yaml", "--step-per-epoch", "3"
    )


@pytest.mark.parametrize("command", ["preview", "savings"])
def test_an_error_in_the_users_code_comes_with_file_and_line(
    config: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    arguments = (command, "--config", "config.yaml", "--steps-per-epoch", "2", "--model.init_args.width=13")
    line = USER.splitlines().index("        return torch.zeros(2) @ torch.zeros(3)  # the user's line") + 1
    printed = refused(capsys, *arguments)
    assert printed.startswith("lightning-freeze: config config.yaml: RuntimeError: ")
    assert f"words_user.py, line {line}, in wrong: return torch.zeros(2) @ torch.zeros(3)" in printed
    assert "Traceback" not in printed
    assert "--traceback" in printed
    assert "Traceback" in refused(capsys, *arguments, "--traceback")


@pytest.mark.parametrize("command", ["preview", "savings"])
def test_data_without_a_length_takes_it_from_the_command_line(
    config: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert "--steps-per-epoch 100" in refused(capsys, command, "--config", "config.yaml")
    assert "--steps-per-epoch must be at least 1" in refused(
        capsys, command, "--config", "config.yaml", "--steps-per-epoch", "0"
    )
    assert main([command, "--config", "config.yaml", "--steps-per-epoch", "3"]) == 0
    assert "step 3" in capsys.readouterr().out


def test_without_torch_the_command_line_still_answers(tmp_path: Path) -> None:
    """Imports of torch are what took 10 s; a seconds' limit here only catches what is far off."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['lightning'] = sys.modules['rich'] = None\n"
        "from lightning_freeze.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    cases = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    cases += [["preview", "--config", "missing.yaml"], ["stages", "resnet18"], ["savings", "--config", "missing.yaml"]]
    for case in cases:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *case], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == (0 if case[-1].startswith("--") else 2), done.stderr
        assert "Traceback" not in done.stderr
        assert time.perf_counter() - start < 10


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    code = (
        "import sys; from lightning_freeze.cli import main; from lightning_freeze.commands import stages\n"
        "stages.run = lambda options: 'line\\n' * 100_000; sys.exit(main(['stages', 'a:b']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
