"""The worked examples of examples/, shortened: each prints what it shows, and its YAML runs under LightningCLI."""

from __future__ import annotations

import warnings
from pathlib import Path
from unittest import mock

import middle_layer
import pitfalls
import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_freeze.cli import main

EXAMPLES = Path(middle_layer.__file__).parent
SHORT = [
    "--trainer.limit_train_batches=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def _lightning_advises_at_length() -> None:
    warnings.simplefilter("ignore")


def run_yaml(name: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> LightningCLI:
    """`python examples/NAME.py fit --config examples/NAME.yaml` in this process."""
    config = str(EXAMPLES / f"{name}.yaml")
    monkeypatch.chdir(EXAMPLES)
    with mock.patch("sys.argv", [f"{name}.py", "fit", "--config", config, *SHORT, *options]):
        return LightningCLI(save_config_callback=None)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_yaml_lies_beside_its_script(path: Path) -> None:
    script = path.with_suffix(".py")
    assert f"{path.stem}.yaml" in script.read_text()


class TestMiddleLayer:
    def test_no_grad_stops_the_layer_before_as_well_and_freezing_does_not(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = middle_layer.main(epochs=1)
        under_no_grad, by_flag, by_callback = found.values()
        assert under_no_grad["first"] == under_no_grad["middle"] == by_flag["middle"] == by_callback["middle"] == 0
        assert under_no_grad["last"] > 0
        assert by_flag == by_callback
        assert by_flag["first"] > 0
        assert "0, exactly" in capsys.readouterr().out

    def test_the_yaml_freezes_it_for_four_epochs(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_yaml("middle_layer", monkeypatch)
        assert "epoch 4, step 8: unfrozen 2 parameters (middle.weight to middle.bias)" in capsys.readouterr().out


class TestPitfalls:
    def test_each_way_by_hand_leaves_something_moving_and_the_callbacks_nothing(self) -> None:
        zeros, flag, mode, both, lightning, ours = pitfalls.main(epochs=2).values()
        assert zeros[0] > 0, "AdamW moves what has a gradient of zero"
        assert flag[0] == 0
        assert flag[1] > 0, "statistics follow the mode"
        assert flag[2] == both[2] == "ON"
        assert mode[0] > 0, "eval mode freezes no weight"
        assert mode[1:] == (0, "off")
        assert both[1] > 0
        assert lightning[0] > 0, "BatchNorm's weights train"
        assert ours == (0, 0, "off")

    def test_the_yaml_runs_with_its_proof(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_yaml("pitfalls", monkeypatch)
        said = capsys.readouterr().out
        assert "epoch 1, step 2: frozen 4 parameters (backbone.0.weight to backbone.1.bias)" in said
        assert "FreezeAudit: 5 audits, 7 frozen tensors" in said


class TestStaged:
    def test_the_yaml_trains_with_a_proof_and_a_picture(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_yaml(
            "staged",
            monkeypatch,
            f"--trainer.logger.init_args.save_dir={tmp_path}",
            f"--trainer.callbacks.plot={tmp_path / 'run.png'}",  # of the last callback in the list
        )
        said = capsys.readouterr().out
        assert "unfrozen blocks.1;" in said
        assert "unfrozen 4 of 6 tensors of blocks.0+1;" in said
        assert "FreezeAudit: 7 audits" in said
        assert (tmp_path / "run.png").exists()
        assert "freeze/grad_norm/head" in next(tmp_path.rglob("metrics.csv")).read_text()

    def test_its_preview_says_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["preview", "--config", str(EXAMPLES / "staged.yaml")]) == 0
        assert "6 epochs, 174 optimizer steps, AdamW" in capsys.readouterr().out
